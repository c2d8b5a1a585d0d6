//! The cluster record: a file of its own, replaced as a whole.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use crate::codec;
use crate::contract::{ClusterRecord, Error, Result};
use crate::env::Disk;

use super::{Embedded, intake};

/// The file.
pub(super) struct Stored {
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

fn unavailable(error: std::io::Error) -> Error {
    Error::Unavailable { reason: format!("the cluster record is out of reach ({error})") }
}

impl Stored {
    pub(super) fn read(&self) -> Result<Option<ClusterRecord>> {
        let stored = self.disk.read(&self.path).map_err(unavailable)?;
        let damaged = |error| Error::Damaged { what: format!("the cluster record: {error}") };
        stored.map(|stored| codec::decode(&stored).map_err(damaged)).transpose()
    }
    /// Durable on return.
    pub(super) fn write(&self, record: ClusterRecord) -> Result<ClusterRecord> {
        self.disk.replace(&self.path, &codec::encode(&record)).map_err(unavailable)?;
        Ok(record)
    }
}

impl Embedded {
    /// Reads or writes the record, one caller at a time.
    pub(super) async fn on_record<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Stored) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.running()?;
        let record = Stored { path: self.shared.config.dir.join("cluster"), disk: self.shared.env.disk() };
        let one = Arc::clone(&self.cluster);
        let done = self.shared.env.blocking("cluster record", move || {
            let _one_at_a_time = one.lock().unwrap_or_else(PoisonError::into_inner);
            act(&record)
        });
        done.await.ok_or_else(intake::closed)?
    }
}
