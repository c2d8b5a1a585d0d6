//! Sessions with the `cellbus` binary, written down with what they print.
//!
//! ```text
//! # A comment.
//! @ GET /v1/cells 200 {"items":[]}       from here on the fake server answers this call so
//! $ COLUMNS=40 cellbus cells | stdin text   run it: variables, arguments, and what it reads
//! none                                    a line of standard output
//! ! cellbus: no                           a line of standard error
//! ? 1                                     its exit code, where it is not 0
//! > GET /v1/cells                         a call that the server was asked (all, in order, if any is given)
//! ```
//!
//! `[..]` stands for anything within a line, a line `...` for any lines. Words may be put in single
//! quotes. `CELLBUS_SERVER` names the fake server, whose URL is printed as `{SERVER}`;
//! `{DIR}` is the folder of the scripts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::binary::cellbus;
use crate::server::{FakeServer, Reply};

#[derive(Default)]
struct Step {
    line: usize,
    command: String,
    /// As it is written, the blank lines after it included.
    text: String,
    stdout: Vec<String>,
    stderr: Vec<String>,
    calls: Vec<String>,
    code: i32,
}

/// Plays the script; gives what differs from it, or nothing. With `CELLBUS_WRITE_SCRIPTS=1` it
/// writes what came into the script instead, to be read before it is committed.
///
/// # Panics
/// When the script cannot be read, or makes no sense.
#[must_use]
pub fn differences(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let folder = path.parent().expect("a script lies in a folder").display().to_string();
    let server = FakeServer::start();
    let (mut wrong, mut written) = (String::new(), String::new());
    let mut replies: BTreeMap<String, Vec<Reply>> = BTreeMap::new();
    let mut step: Option<Step> = None;
    let mut end = |step: &mut Option<Step>, written: &mut String| {
        if let Some(step) = step.take() {
            match step.play(&folder, &server) {
                Ok(()) => written.push_str(&step.text),
                Err(came) => {
                    let _ = writeln!(wrong, "{}:{}: this came instead:\n{came}", path.display(), step.line);
                    let _ = writeln!(written, "{came}");
                }
            }
        }
    };
    for (number, line) in text.lines().enumerate() {
        let (mark, rest) = line.split_at(line.len().min(2));
        match mark {
            "@ " | "$ " | "# " => end(&mut step, &mut written),
            _ => {}
        }
        match (mark, &mut step) {
            ("@ ", _) => {
                let mut words = rest.splitn(4, ' ');
                let mut word = || words.next().unwrap_or_default();
                let call = format!("{} {}", word(), word());
                let status = word().parse().unwrap_or_else(|_| panic!("{}:{}: no status", path.display(), number + 1));
                replies.entry(call).or_default().push(Reply { status, body: word().to_owned() });
                let _ = writeln!(written, "{line}");
            }
            ("$ ", _) => {
                for (call, replies) in std::mem::take(&mut replies) {
                    server.reply(&call, replies);
                }
                let text = format!("{line}\n");
                step = Some(Step { line: number + 1, command: rest.to_owned(), text, ..Step::default() });
            }
            (_, Some(step)) => {
                let _ = writeln!(step.text, "{line}");
                match mark {
                    "! " => step.stderr.push(rest.to_owned()),
                    "> " => step.calls.push(rest.to_owned()),
                    "? " => step.code = rest.parse().expect("an exit code is a number"),
                    _ => step.stdout.push(line.to_owned()),
                }
            }
            ("" | "# ", None) => {
                let _ = writeln!(written, "{line}");
            }
            (_, None) => panic!("{}:{}: output before any command", path.display(), number + 1),
        }
    }
    end(&mut step, &mut written);
    if !wrong.is_empty() && std::env::var_os("CELLBUS_WRITE_SCRIPTS").is_some() {
        std::fs::write(path, written.trim_end().to_owned() + "\n").expect("the script can be written");
        return String::new();
    }
    wrong
}

impl Step {
    /// Runs the command; gives the step as it should have been written, if it came otherwise.
    fn play(&self, folder: &str, server: &FakeServer) -> Result<(), String> {
        let (command, input) = self.command.split_once(" | ").unwrap_or((&self.command, ""));
        let words = words(&command.replace("{DIR}", folder));
        let program = words.iter().position(|word| !word.contains('=')).unwrap_or(0);
        assert_eq!(words.get(program).map(String::as_str), Some("cellbus"), "line {}", self.line);
        let mut child = Command::new(cellbus())
            .args(&words[program + 1..])
            .env_clear()
            .env("CELLBUS_SERVER", server.url())
            .envs(words[..program].iter().filter_map(|word| word.split_once('=')))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // A command that does not read its input closes it, which is its right.
        let _ = child.stdin.take().expect("it is piped").write_all(input.replace("\\n", "\n").as_bytes());
        let done = child.wait_with_output().expect("it ends");
        let lines = |output: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(output).replace(&server.url(), "{SERVER}").replace(folder, "{DIR}");
            text.lines().map(|line| line.trim_end().to_owned()).collect()
        };
        let (stdout, stderr, asked) = (lines(&done.stdout), lines(&done.stderr), server.asked());
        let code = done.status.code().unwrap_or(-1);
        if code == self.code
            && matches_all(without_blank_end(&self.stdout), without_blank_end(&stdout))
            && matches_all(&self.stderr, &stderr)
            && (self.calls.is_empty() || matches_all(&self.calls, &asked))
        {
            return Ok(());
        }
        let mut came = format!("$ {}\n", self.command);
        for (mark, lines) in [("", &stdout), ("! ", &stderr), ("> ", &asked)] {
            for line in lines {
                let _ = writeln!(came, "{mark}{line}");
            }
        }
        if code != 0 {
            let _ = writeln!(came, "? {code}");
        }
        Err(came)
    }
}

/// Blank lines at the end part one step of a script from the next.
fn without_blank_end(mut lines: &[String]) -> &[String] {
    while let Some((last, rest)) = lines.split_last() {
        if !last.is_empty() {
            break;
        }
        lines = rest;
    }
    lines
}

fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.trim().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("there is always one").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn matches_all(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((head, rest)) if head == "..." => (0..=found.len()).any(|skip| matches_all(rest, &found[skip..])),
        Some((head, rest)) => {
            found.first().is_some_and(|line| matches_line(head, line)) && matches_all(rest, &found[1..])
        }
    }
}

fn matches_line(expected: &str, found: &str) -> bool {
    let mut parts = expected.split("[..]");
    let Some(mut left) = parts.next().and_then(|first| found.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return left.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_as_described() {
        assert!(matches_line("a[..]c", "abbbc") && matches_line("[..]", "") && matches_line("a [..] c", "a b c"));
        assert!(!matches_line("a[..]c", "abbbd") && !matches_line("a", "ab") && !matches_line("[..]x[..]", "ab"));
        let lines = |text: &[&str]| text.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(matches_all(&lines(&["a", "...", "z"]), &lines(&["a", "b", "c", "z"])));
        assert!(!matches_all(&lines(&["a", "..."]), &lines(&["b"])) && !matches_all(&[], &lines(&["b"])));
    }

    #[test]
    fn words_keep_what_is_quoted() {
        assert_eq!(words("A=1 cellbus vm 'a b'"), ["A=1", "cellbus", "vm", "a b"]);
    }
}
