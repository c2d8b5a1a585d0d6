//! How far something long is: bars on a terminal, plain lines elsewhere, always on stderr.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use cellbus_bus::{Env, Mono};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::exit::note;

/// How often a plain line is written: seldom enough for a log, often enough to see that it lives.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// One phase of something long.
pub(crate) struct Progress {
    what: String,
    total: u64,
    began: Mono,
    said: Mono,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins a phase of `total` steps; zero: not known.
    pub(crate) fn begin(env: &Env, what: &str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = if total > 0 {
                "{msg:<28} {bar:32} {human_pos:>9}/{human_len} {per_sec:>14} {elapsed:>4}"
            } else {
                "{msg:<28} {spinner} {elapsed:>4}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_message(what.to_owned());
            bar
        });
        let now = env.mono();
        if bar.is_none() {
            note(&if total > 0 { format!("{what}: 0 of {total}") } else { what.to_owned() });
        }
        Self { what: what.to_owned(), total, began: now, said: now, bar }
    }
    /// What there is to know besides, on a terminal.
    pub(crate) fn also(&self, words: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}, {words}", self.what));
        }
    }
    /// So many steps are done.
    pub(crate) fn at(&mut self, env: &Env, done: u64) {
        let now = env.mono();
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if now.since(self.said) >= LINE_EVERY => {
                self.said = now;
                note(&format!("{}: {done} of {}", self.what, self.total));
            }
            None => {}
        }
    }
    /// The phase is over; `result` says what came of it.
    pub(crate) fn end(self, env: &Env, result: &str) {
        let seconds = env.mono().since(self.began).as_secs_f64();
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        note(&format!("{}: {result} ({seconds:.1} s)", self.what));
    }
}
