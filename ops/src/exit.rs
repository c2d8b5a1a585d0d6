//! How a command can end, and the exit code of each way: 0 done, 1 the job or check failed,
//! 2 bad usage, 3 the server can't be reached.

use std::io;
use std::process::ExitCode;

use cellbus_cell::backup;

use crate::client::Problem;

/// Bad usage, as clap has it too.
pub(crate) const USAGE: u8 = 2;
const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was asked makes no sense, which was noticed before anything was done.
    #[error("{0}")]
    Usage(String),
    /// A job failed, or a check found something. What is to be said has been printed.
    #[error("{0}")]
    Failed(String),
    /// The server refused.
    #[error(transparent)]
    Refused(Box<Problem>),
    /// No answer from the server.
    #[error("cannot reach {server}: {reason}. Is it running? --server or CELLBUS_SERVER names another one")]
    Unreachable {
        /// Its URL.
        server: String,
        /// Why, in words.
        reason: String,
    },
    /// Whoever read our output has gone.
    #[error("the reader of the output has gone")]
    OutputClosed,
    /// Anything else that this machine did not let us do.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Shorthand.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Says on stderr what there is to say, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self {
            Self::OutputClosed => return ExitCode::SUCCESS,
            Self::Usage(_) => USAGE,
            Self::Failed(_) | Self::Refused(_) | Self::Other(_) => FAILED,
            Self::Unreachable { .. } => UNREACHABLE,
        };
        let message = match self {
            // The chain of causes, which `Display` of the outermost leaves out.
            Self::Other(error) => format!("{error:#}"),
            Self::Usage(_) | Self::Failed(_) | Self::Refused(_) | Self::Unreachable { .. } | Self::OutputClosed => {
                self.to_string()
            }
        };
        if let Self::Refused(problem) = self
            && let Some(document) = &problem.echo
        {
            // Its reader may have gone; the exit code still says how it went.
            let _ = crate::output::line(document);
        }
        note(&format!("cellbus: {message}"));
        ExitCode::from(code)
    }
}

/// Output to a pipe that nobody reads any more ends a command quietly; any other failure does not.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::OutputClosed } else { Self::Other(error.into()) }
    }
}

/// With its code, which the page of the error is named by.
impl From<backup::Error> for Error {
    fn from(error: backup::Error) -> Self {
        let code = error.code();
        Self::Failed(format!("{:#} ({code})", anyhow::Error::new(error)))
    }
}

/// A line for the person at the terminal. Best effort: stderr may be closed.
pub(crate) fn note(line: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "{line}");
}
