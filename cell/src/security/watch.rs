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

/// What looks have found.
struct Seen {
    /// What the value in force was made of.
    content: Vec<Bytes>,
    /// What the last look found instead.
    new: Option<New>,
}

struct New {
    found: Result<Vec<Bytes>, String>,
    /// Whether it has been judged, and found wanting.
    broken: bool,
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
        let seen = Mutex::new(Seen { content, new: None });
        Ok(Self { name, files, read, now, seen, metrics: metrics.clone() })
    }

    /// The value in force.
    pub(super) fn now(&self) -> Arc<T> {
        self.now.load_full()
    }

    /// Looks whether the files hold something else. What two looks find alike is judged: files are
    /// not written, nor several of them replaced, at one moment. Cancel safe.
    pub(super) async fn look(&self, env: &Env) {
        let found = content(&self.files, env).await.map_err(|error| in_full(&error));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if found.as_ref().is_ok_and(|content| *content == seen.content) {
            // Put back as it was, if it was something else in between.
            if seen.new.take().is_some() {
                self.metrics.broken(self.name, false);
            }
            return;
        }
        let same = seen.new.as_ref().filter(|new| new.found == found);
        match same {
            None => {
                // The metric stays as it is until these are judged too.
                seen.new = Some(New { found, broken: false });
                return;
            }
            Some(judged) if judged.broken => return,
            Some(_) => {}
        }
        let made = found.and_then(|content| {
            let value = (self.read)(&content).map_err(|error| in_full(&error))?;
            Ok((content, value))
        });
        match made {
            Ok((content, value)) => {
                self.now.store(Arc::new(value));
                *seen = Seen { content, new: None };
                self.metrics.broken(self.name, false);
                self.metrics.reloaded(self.name);
                tracing::info!(files = self.name, "read again: what they hold counts from now on");
            }
            Err(error) => {
                if let Some(new) = &mut seen.new {
                    new.broken = true;
                }
                self.metrics.broken(self.name, true);
                tracing::error!(files = self.name, error, "new files cannot be used: the old ones stay in force");
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
