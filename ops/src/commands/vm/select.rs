//! Which VMs an operation is for: those named, or all that have some labels. The second kind is
//! counted first, and the count confirmed: typed on a terminal, given with `--confirm` elsewhere.

use clap::Args;
use serde_json::Value;

use crate::commands::confirm::confirmed;
use crate::commands::paging::next_cursor;
use crate::exit::{Error, Result};
use crate::jobs::{Jobs, Target, is_id, key_value};
use crate::table;

/// Which VMs.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Their ids, or names
    #[arg(required_unless_present = "labels", conflicts_with = "labels", value_name = "VM")]
    vms: Vec<String>,
    /// All VMs with this label instead; may be repeated
    #[arg(long = "label", id = "labels", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// How many VMs the labels are to stand for; asked for on a terminal when not given
    #[arg(long, value_name = "COUNT", requires = "labels")]
    confirm: Option<usize>,
}

impl Selection {
    pub(super) fn is_by_label(&self) -> bool {
        !self.labels.is_empty()
    }

    /// The VMs, each with its tenant.
    pub(super) async fn targets(&self, jobs: &Jobs<'_>, verb: &str, tenant: Option<&str>) -> Result<Vec<Target>> {
        if self.is_by_label() {
            let targets = self.labelled(jobs, tenant).await?;
            self.confirmed(verb, targets.len(), tenant)?;
            return Ok(targets);
        }
        let mut targets = Vec::with_capacity(self.vms.len());
        for vm in &self.vms {
            let tenant = match tenant {
                Some(tenant) => tenant.to_owned(),
                None if is_id(vm) => {
                    let row = jobs.client.get(&["v1", "vms", vm], &[]).await?;
                    text(&row.value, "tenant")?
                }
                None => "default".to_owned(),
            };
            targets.push(Target { vm: vm.clone(), tenant });
        }
        Ok(targets)
    }

    async fn labelled(&self, jobs: &Jobs<'_>, tenant: Option<&str>) -> Result<Vec<Target>> {
        let mut filters: Vec<_> = self.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))).collect();
        filters.extend(tenant.map(|tenant| ("tenant", tenant.to_owned())));
        filters.push(("limit", "1000".to_owned()));
        let mut targets = Vec::new();
        let mut cursor = None;
        loop {
            let mut query = filters.clone();
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page = jobs.client.get(&["v1", "vms"], &query).await?;
            for row in table::items(&page.value) {
                targets.push(Target { vm: text(row, "id")?, tenant: text(row, "tenant")? });
            }
            cursor = next_cursor(&page);
            if cursor.is_none() {
                return Ok(targets);
            }
        }
    }

    fn confirmed(&self, verb: &str, count: usize, tenant: Option<&str>) -> Result<()> {
        let whose = tenant.map_or_else(|| "all tenants".to_owned(), |tenant| format!("tenant {tenant}"));
        let said = format!("the labels stand for {count} VMs of {whose}");
        confirmed(self.confirm, count, &said, &format!("{verb} {count} VMs of {whose}"))
    }
}

fn text(row: &Value, key: &str) -> Result<String> {
    row.get(key)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| Error::Failed(format!("the server's row has no {key}: {row}")))
}
