//! Lists: filters, cursors and pages.

use std::collections::BTreeMap;

use cellbus_bus::codec;
use cellbus_bus::ids::{HostId, JobId, ManagerId, TenantId, VmId};
use cellbus_bus::job::{JobKind, Labels};
use serde::{Deserialize, Serialize};

use super::Replica;
use super::key::{After, Id, Key, walk};
use super::partition::Partition;
use super::row::{VmRow, job_state_number, place_of, state_number};
use crate::job::{JobRow, JobState};
use crate::vm::{Vm, VmState};

/// The most rows of a page.
pub const PAGE_MAX: usize = 1_000;

/// Rows looked at for one page: a page over a filter that few rows pass ends here, short or
/// empty but with a cursor, and takes no longer than a full one.
const EXAMINED_MAX: usize = 200_000;
/// Keys taken from the index of a manager at a time, at most.
const KEYS_MAX: usize = 65_536;

/// Which VMs. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state; without one, all but deleted ones.
    pub state: Option<VmState>,
    /// Held by this manager.
    pub manager: Option<ManagerId>,
    /// On a host of this name.
    pub host: Option<HostId>,
    /// With all of these labels.
    pub labels: Labels,
}

/// Which jobs. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state.
    pub state: Option<JobState>,
    /// Not ended.
    pub open: bool,
    /// Of this type.
    pub kind: Option<JobKind>,
}

impl JobFilter {
    fn admits(&self, state: JobState) -> bool {
        self.state.is_none_or(|wanted| state == wanted) && !(self.open && state.ended())
    }
}

/// A page of a list. There is more if and only if there is a cursor; a page may be short, or
/// empty, and have one.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The rows, by shard and id.
    pub items: Vec<T>,
    /// Where the next page begins: give it back as it is, with the same filter.
    pub next: Option<String>,
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ListError {
    /// The limit is out of bounds.
    #[error("a page has 1 to {PAGE_MAX} rows, not {limit}")]
    Limit {
        /// What was asked for.
        limit: usize,
    },
    /// The cursor was not made by this list with this filter.
    #[error(
        "the cursor is not one of this list; begin again without it, and keep the filter the same from page to page"
    )]
    Cursor,
}

impl ListError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Limit { .. } => "invalid_limit",
            Self::Cursor => "invalid_cursor",
        }
    }
    /// Whether the same call may succeed later: never.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Limit { .. } | Self::Cursor => false,
        }
    }
}

/// What a cursor is for.
#[derive(Clone, Copy)]
enum List {
    Vms = 1,
    Jobs = 2,
}

const CURSOR_VERSION: u8 = 1;

/// Version, list, checksum of the filter, id, checksum of all that: 26 bytes, in hexadecimal.
fn cursor(list: List, filter: &impl Serialize, id: &[u8; 16]) -> String {
    let mut bytes = vec![CURSOR_VERSION, list as u8];
    bytes.extend_from_slice(&crc32fast::hash(&codec::encode(filter)).to_be_bytes());
    bytes.extend_from_slice(id);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_cursor(list: List, filter: &impl Serialize, text: &str) -> Result<uuid::Uuid, ListError> {
    if text.len() != 52 || !text.is_ascii() {
        return Err(ListError::Cursor);
    }
    let mut bytes = [0_u8; 26];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| ListError::Cursor)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| ListError::Cursor)?;
    }
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[6..22]);
    // Made again, it must be the same text: that checks all parts, and the letters' case.
    if cursor(list, filter, &id) == text { Ok(uuid::Uuid::from_bytes(id)) } else { Err(ListError::Cursor) }
}

/// A page in the making.
struct Making<I, T> {
    items: Vec<T>,
    limit: usize,
    examined: usize,
    /// The last row that was looked at and belongs to this page, shown or not.
    last: Option<I>,
    more: bool,
}

impl<I: Id, T> Making<I, T> {
    fn new(limit: usize) -> Self {
        Self { items: Vec::with_capacity(limit), limit, examined: 0, last: None, more: false }
    }
    /// The next row, shown if it passes. Whether to go on.
    fn offer(&mut self, id: I, item: Option<T>) -> bool {
        if let Some(item) = item {
            if self.items.len() == self.limit {
                self.more = true;
                return false;
            }
            self.items.push(item);
        }
        self.examined += 1;
        self.last = Some(id);
        self.more = self.examined >= EXAMINED_MAX;
        !self.more
    }
    fn page(self, cursor: impl FnOnce(&[u8; 16]) -> String) -> Page<T> {
        let next = self.last.filter(|_| self.more).map(|id| cursor(id.bytes()));
        Page { items: self.items, next }
    }
}

/// A filter, prepared.
struct VmTest<'a> {
    replica: &'a Replica,
    filter: &'a VmFilter,
    /// Which templates have the labels.
    labels: BTreeMap<std::num::NonZeroU32, bool>,
}

impl VmTest<'_> {
    /// The VM, if it passes.
    fn pass(&mut self, part: &Partition, row: &VmRow) -> Option<Vm> {
        let shared = &self.replica.shared;
        let state = part.vm_state(row);
        match self.filter.state {
            Some(wanted) if state != wanted => return None,
            None if state == VmState::Deleted => return None,
            Some(_) | None => {}
        }
        if !shared.places.matches(place_of(row.place_state), self.filter.manager, self.filter.host.as_ref()) {
            return None;
        }
        if !self.filter.labels.is_empty() {
            let has = *self.labels.entry(row.template).or_insert_with(|| {
                let template = shared.templates.get(row.template);
                template.is_some_and(|t| self.filter.labels.iter().all(|(key, value)| t.labels.get(key) == Some(value)))
            });
            if !has {
                return None;
            }
        }
        let vm = part.vm(shared, row)?;
        self.filter.tenant.as_ref().is_none_or(|tenant| vm.tenant == *tenant).then_some(vm)
    }
}

impl Replica {
    /// A page of VMs, by shard and id. A VM that passes the filter from the first page to the
    /// last is on exactly one of them, whatever changes meanwhile.
    ///
    /// # Errors
    /// When `limit` is not 1 to [`PAGE_MAX`], or the cursor is not one of this list.
    pub fn list(&self, filter: &VmFilter, limit: usize, from: Option<&str>) -> Result<Page<Vm>, ListError> {
        let after = start(List::Vms, filter, limit, from)?.map(|id| After::new(VmId::from_uuid(id), self.shared.count));
        let mut making = Making::new(limit);
        let mut test = VmTest { replica: self, filter, labels: BTreeMap::new() };
        if filter.manager.is_some() || filter.host.is_some() {
            self.list_placed(&mut test, after, &mut making);
        } else {
            self.list_all(&mut test, after, &mut making);
        }
        Ok(making.page(|id| cursor(List::Vms, filter, id)))
    }

    fn list_all(&self, test: &mut VmTest<'_>, after: Option<After<VmId>>, making: &mut Making<VmId, Vm>) {
        let filter = test.filter;
        let tenant = match &filter.tenant {
            None => None,
            Some(tenant) => match self.shared.tenants.find(tenant) {
                Some(tenant) => Some(tenant),
                None => return,
            },
        };
        let from = after.map_or(Key::MIN, After::start);
        for shard in self.shared.count.shards().skip(usize::from(from.shard())) {
            let Some(part) = self.read(shard) else { return };
            // Displayed states are counted: a rare one is found without a look at every row.
            if filter.state.is_some_and(|state| part.vms.states[state_number(state) as usize] == 0) {
                continue;
            }
            let keys = match tenant {
                None => Some(&part.vms.by_id),
                Some(tenant) => part.vms.by_tenant.get(&tenant),
            };
            let Some(keys) = keys else { continue };
            let go_on = walk(
                keys.range(from.max(Key::MIN)..).copied(),
                after,
                |key| part.vms.rows.get(key.row()).map(|row| row.id),
                |key, id| making.offer(id, part.vms.rows.get(key.row()).and_then(|row| test.pass(&part, row))),
            );
            if !go_on {
                return;
            }
        }
    }

    fn list_placed(&self, test: &mut VmTest<'_>, after: Option<After<VmId>>, making: &mut Making<VmId, Vm>) {
        let filter = test.filter;
        let mut from = after.map_or(Key::MIN, After::start);
        let mut want = making.limit + 1;
        loop {
            let keys = self.shared.places.least(filter.manager, filter.host.as_ref(), from, want);
            let Some(last) = keys.last().copied() else { return };
            let whole = keys.len() >= want;
            for run in keys.chunk_by(|a, b| a.shard() == b.shard()) {
                let Some(part) = self.partitions.get(usize::from(run[0].shard())) else { continue };
                let part = part.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                let go_on = walk(
                    run.iter().copied(),
                    after,
                    // The row may have another VM by now; that one has a key of its own.
                    |key| {
                        part.vms.rows.get(key.row()).filter(|row| part.key(&row.id, key.row()) == key).map(|row| row.id)
                    },
                    |key, id| making.offer(id, part.vms.rows.get(key.row()).and_then(|row| test.pass(&part, row))),
                );
                if !go_on {
                    return;
                }
            }
            if !whole {
                return;
            }
            from = last.after_group();
            want = (want * 4).min(KEYS_MAX);
        }
    }

    /// A page of jobs, by shard and id; complete in the same sense as [`Replica::list`].
    ///
    /// # Errors
    /// As `list`.
    pub fn jobs(&self, filter: &JobFilter, limit: usize, from: Option<&str>) -> Result<Page<JobRow>, ListError> {
        let after =
            start(List::Jobs, filter, limit, from)?.map(|id| After::new(JobId::from_uuid(id), self.shared.count));
        let mut making = Making::new(limit);
        let page = |making: Making<JobId, JobRow>| Ok(making.page(|id| cursor(List::Jobs, filter, id)));
        let tenant = match &filter.tenant {
            None => None,
            Some(tenant) => match self.shared.tenants.find(tenant) {
                Some(tenant) => Some(tenant),
                None => return page(making),
            },
        };
        let from = after.map_or(Key::MIN, After::start);
        for shard in self.shared.count.shards().skip(usize::from(from.shard())) {
            let Some(part) = self.read(shard) else { break };
            // One that has ended may still be shown as running, so only the others can be skipped.
            let none = |state: JobState| part.jobs.states[job_state_number(state)] == 0;
            if filter.state.is_some_and(|state| state != JobState::Running && none(state)) {
                continue;
            }
            let keys = match tenant {
                None => Some(&part.jobs.by_id),
                Some(tenant) => part.jobs.by_tenant.get(&tenant),
            };
            let Some(keys) = keys else { continue };
            let go_on = walk(
                keys.range(from..).copied(),
                after,
                |key| part.jobs.rows.get(key.row()).map(|slot| slot.id),
                |key, id| {
                    let row = part
                        .jobs
                        .rows
                        .get(key.row())
                        .filter(|slot| filter.kind.is_none_or(|kind| slot.kind == kind))
                        .filter(|slot| filter.admits(part.shown_job_state(&self.shared, slot)))
                        .and_then(|slot| part.shown_job(&self.shared, slot))
                        // The state may have become another between the two looks.
                        .filter(|row| filter.admits(row.state))
                        .filter(|row| filter.tenant.as_ref().is_none_or(|tenant| row.tenant == *tenant));
                    making.offer(id, row)
                },
            );
            if !go_on {
                break;
            }
        }
        page(making)
    }
}

fn start(
    list: List,
    filter: &impl Serialize,
    limit: usize,
    from: Option<&str>,
) -> Result<Option<uuid::Uuid>, ListError> {
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ListError::Limit { limit });
    }
    from.map(|text| read_cursor(list, filter, text)).transpose()
}
