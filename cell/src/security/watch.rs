//! Files that make one value, read again while the process runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cellbus_bus::Env;

use super::Error;
use crate::metrics::security::Metrics;

/// Bytes of one file. Ten thousand tokens and a long chain are below it.
pub(super) const FILE_BYTES_MAX: usize = 2 << 20;

/// Makes the value of what the files hold, in their order.
type Read<T> = Box<dyn Fn(&[Bytes]) -> Result<T, Error> + Send + Sync>;

/// A value made of files: what they held when they last made sense together.
pub(super) struct Watched<T> {
    /// For metrics and the log.
    name: &'static str,
    files: Vec<PathBuf>,
    read: Read<T>,
    now: ArcSwap<T>,
    seen: Mutex<Seen>,
    metrics: Metrics,
}

/// What the last look found.
struct Seen {
    content: Vec<Bytes>,
    /// What is wrong with the files since the value was made, and whether it has been said.
    broken: Option<(String, Said)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    NotYet,
    Already,
}

impl<T: Send + Sync + 'static> Watched<T> {
    pub(super) async fn open(
        name: &'static str,
        files: Vec<PathBuf>,
        read: Read<T>,
        env: &Env,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let content = content(&files, env).await?;
        let now = ArcSwap::from_pointee(read(&content)?);
        metrics.broken(name, false);
        let seen = Mutex::new(Seen { content, broken: None });
        Ok(Self { name, files, read, now, seen, metrics: metrics.clone() })
    }

    /// The value in force.
    pub(super) fn now(&self) -> Arc<T> {
        self.now.load_full()
    }

    /// Looks whether the files hold something else. Cancel safe.
    pub(super) async fn look(&self, env: &Env) {
        let found = content(&self.files, env).await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match found {
            Ok(content) if content == seen.content => {
                // Put back as it was, if it was broken in between.
                if seen.broken.take().is_some() {
                    self.metrics.broken(self.name, false);
                }
                return;
            }
            Ok(content) => (self.read)(&content).map(|value| (content, value)),
            Err(error) => Err(error),
        };
        match made {
            Ok((content, value)) => {
                self.now.store(Arc::new(value));
                *seen = Seen { content, broken: None };
                self.metrics.broken(self.name, false);
                self.metrics.reloaded(self.name);
                tracing::info!(files = self.name, "read again: what they hold counts from now on");
            }
            Err(error) => {
                let why = in_full(&error);
                // Several files are not replaced at one moment: what is still wrong at the next
                // look is worth a person's attention, and is said once.
                let said = match &seen.broken {
                    Some((before, Said::Already)) if *before == why => Said::Already,
                    Some((before, Said::NotYet)) if *before == why => {
                        self.metrics.broken(self.name, true);
                        tracing::error!(
                            files = self.name,
                            error = why,
                            "new files cannot be used: the old ones stay in force"
                        );
                        Said::Already
                    }
                    Some(_) | None => Said::NotYet,
                };
                seen.broken = Some((why, said));
            }
        }
    }
}

async fn content(files: &[PathBuf], env: &Env) -> Result<Vec<Bytes>, Error> {
    let (disk, paths) = (env.disk(), files.to_vec());
    let read = move || {
        paths
            .into_iter()
            .map(|path| match disk.read(&path) {
                Ok(Some(content)) if content.len() > FILE_BYTES_MAX => {
                    Err(Error::TooLarge { path, bytes: content.len(), max: FILE_BYTES_MAX })
                }
                Ok(Some(content)) => Ok(content),
                Ok(None) => Err(Error::Missing { path }),
                Err(source) => Err(Error::Unreadable { path, source }),
            })
            .collect()
    };
    // `None` while the runtime shuts down: nobody looks at the value any more.
    let stopping = || Err(Error::Missing { path: files.first().cloned().unwrap_or_default() });
    env.blocking("security files", read).await.unwrap_or_else(stopping)
}

/// With its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
