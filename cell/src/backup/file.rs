//! Where a backup is written: under another name until it is whole and durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cellbus_bus::Env;
use cellbus_bus::backup::{Frame, Head, Summary, Writer};

use super::{Error, Result};

/// Bytes that are collected before they go to the disk.
const BUFFER_BYTES: usize = 1 << 20;

/// The name of a backup that is not whole ends so.
pub(super) const PARTIAL: &str = ".partial";

/// A backup being written.
pub(super) struct Output {
    env: Env,
    path: PathBuf,
    partial: PathBuf,
    /// `None` while it is being written from.
    file: Option<File>,
    /// `None` once it is finished.
    writer: Option<Writer<Vec<u8>>>,
}

impl Output {
    /// Begins it, in the place of one that was left half way.
    pub(super) async fn create(env: &Env, path: &Path, head: Head) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(PARTIAL);
        let partial = PathBuf::from(name);
        let opened = partial.clone();
        let file = env.blocking("create backup", move || open(&opened)).await.ok_or(Error::Stopped)?;
        let write = |source| Error::Write { path: partial.clone(), source };
        let file = file.map_err(write)?;
        let writer = Writer::new(Vec::with_capacity(BUFFER_BYTES), head).map_err(write)?;
        Ok(Self { env: env.clone(), path: path.to_owned(), partial, file: Some(file), writer: Some(writer) })
    }

    pub(super) async fn frame(&mut self, frame: &Frame) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Err(Error::Stopped) };
        writer.frame(frame).map_err(|source| Error::Write { path: self.partial.clone(), source })?;
        if writer.out().len() >= BUFFER_BYTES {
            let full = std::mem::replace(writer.out(), Vec::with_capacity(BUFFER_BYTES));
            self.write(full).await?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        let Some(mut file) = self.file.take() else { return Err(Error::Stopped) };
        let written = self.env.blocking("write backup", move || file.write_all(&bytes).map(|()| file)).await;
        let file = written.ok_or(Error::Stopped)?;
        self.file = Some(file.map_err(|source| Error::Write { path: self.partial.clone(), source })?);
        Ok(())
    }

    /// Gives it its name, once all of it is durable.
    pub(super) async fn finish(mut self) -> Result<Summary> {
        let Some(writer) = self.writer.take() else { return Err(Error::Stopped) };
        let (rest, summary) = writer.finish().map_err(|source| Error::Write { path: self.partial.clone(), source })?;
        self.write(rest).await?;
        let Some(file) = self.file.take() else { return Err(Error::Stopped) };
        let (partial, path) = (self.partial.clone(), self.path.clone());
        let named = self.env.blocking("finish backup", move || {
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(directory(&path))?.sync_all()
        });
        let named = named.await.ok_or(Error::Stopped)?;
        named.map_err(|source| Error::Write { path: self.path.clone(), source })?;
        Ok(summary)
    }

    /// Takes away what was written.
    pub(super) async fn discard(self) {
        let partial = self.partial;
        // What is left of it is replaced by the next one.
        let _ = self.env.blocking("discard backup", move || fs::remove_file(partial)).await;
    }
}

pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// For its owner's eyes only: it holds what all tenants have asked for.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
