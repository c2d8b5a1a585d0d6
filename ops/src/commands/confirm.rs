//! Bulk changes are counted first, and the count confirmed: typed on a terminal, given with
//! `--confirm` elsewhere.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::exit::{Error, Result};

/// Goes on if `count` is what was given or is typed. `said`: what was counted ("the labels stand for 2
/// VMs"); `question`: what is about to happen ("delete 2 VMs").
pub(super) fn confirmed(given: Option<usize>, count: usize, said: &str, question: &str) -> Result<()> {
    match given {
        Some(expected) if expected == count => Ok(()),
        Some(expected) => Err(Error::Failed(format!("{said}, not for {expected}: nothing was done"))),
        None if count == 0 => Ok(()),
        None if io::stdin().is_terminal() && io::stderr().is_terminal() => {
            let mut prompt = io::stderr().lock();
            write!(prompt, "{question}? Type the count to go on: ")?;
            prompt.flush()?;
            let mut typed = String::new();
            io::stdin().lock().read_line(&mut typed)?;
            if typed.trim() == count.to_string() { Ok(()) } else { Err(Error::Failed("nothing was done".to_owned())) }
        }
        None => Err(Error::Usage(format!("{said}: --confirm {count} says that this is meant"))),
    }
}
