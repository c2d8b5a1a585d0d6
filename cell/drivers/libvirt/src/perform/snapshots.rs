//! Snapshots, which libvirt keeps with the domain: internal to its disk, with memory where it runs.

use std::sync::Arc;

use cellbus_bus::ids::ShortName;
use cellbus_cell::driver::Error;
use cellbus_workflows::Action;
use virt::connect::Connect;
use virt::domain_snapshot::DomainSnapshot;

use super::{Work, invalid};
use crate::calls;
use crate::domain;
use crate::driver::Outcome;

impl Work<'_> {
    pub(super) async fn snapshots(mut self) -> Outcome {
        let has = |name| self.copy.look.snapshots.contains(name);
        match &self.op.action {
            Action::Snapshot(name) if has(name) && !self.again => {
                return Err(invalid(format!("there is a snapshot {name} already")));
            }
            Action::Revert(name) if !has(name) => return Err(invalid(format!("there is no snapshot {name}"))),
            _ => {}
        }
        if let Action::Revert(name) = &self.op.action
            && self.copy.record.adopted()
        {
            self.expect_record_in(name.clone()).await?;
        }
        self.begin().await?;
        match self.op.action.clone() {
            Action::Snapshot(name) => {
                self.change(move |handle, _| {
                    if calls::snapshot(handle, &name)?.is_none() {
                        DomainSnapshot::create_xml(handle, &domain::snapshot(&name), 0)?;
                    }
                    Ok(())
                })
                .await?;
            }
            // The domain becomes what it was, our record included: `finish` writes the present one again.
            Action::Revert(name) => {
                let record = self.copy.record.clone();
                self.change(move |handle, connection| {
                    if let Some(snapshot) = calls::snapshot(handle, &name)? {
                        snapshot.revert(0)?;
                        calls::write(&calls::handle(connection, record.uuid())?, &record)?;
                    }
                    Ok(())
                })
                .await?;
            }
            Action::SnapshotDelete(name) => {
                self.change(move |handle, _| {
                    if let Some(snapshot) = calls::snapshot(handle, &name)? {
                        snapshot.delete(0)?;
                    }
                    Ok(())
                })
                .await?;
            }
            _ => {}
        }
        self.finish().await
    }

    /// Whether the snapshot is from a time when the domain was adopted already. Back in one from before it would
    /// be another's until our record is written again, and would stay so if nobody came to write it.
    async fn expect_record_in(&self, name: ShortName) -> Result<(), Error> {
        let uuid = self.uuid();
        let looked = name.clone();
        let has = move |connection: &Arc<Connect>| {
            let Some(snapshot) = calls::snapshot(&calls::handle(connection, uuid)?, &looked)? else { return Ok(true) };
            Ok(domain::has_record(&snapshot.get_xml_desc(0)?)?)
        };
        if self.manager.hosts.call(&self.copy.host, has).await? {
            return Ok(());
        }
        Err(invalid(format!("the snapshot {name} is from before the VM was adopted: going back to it would undo that")))
    }
}
