//! Adoption: VMs that stand on managers already are taken into the directory.
//!
//! A plan is made of what the managers say they have; it changes nothing. To apply it is to make the
//! plan again and to put work for each of its VMs on the line of the VM's home, provided that it names
//! as many as the caller says: what was looked at is what is done. A VM's id follows from its manager
//! and its key there, so that it is taken in once, however often a plan is applied, and one that was
//! cut off half way is applied again for the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use cellbus_bus::contract::{Queue, QueueKind};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ForeignKey, JobId, ManagerId, OpNumber, ShardId, TenantId, VmId, VmName};
use cellbus_bus::job::{Labels, Policy};
use cellbus_directory::record::Operator;
use cellbus_directory::work::Task;
use cellbus_directory::{Adoption, Template, Vm, VmFacts, VmState, Work};
use cellbus_workflows::JobItem;
use futures::stream::StreamExt as _;
use uuid::Uuid;
use wildmatch::WildMatch;

use super::{Error, Gateway, Result, What};
use crate::driver::ForeignVm;
use crate::peers::{Request, Response};

/// VMs of one plan: the rest is for the next.
pub const ADOPT_MAX: usize = 10_000;
/// Adoptions that are remembered.
const KEPT_MAX: usize = 16;
/// Managers read at once.
const AT_ONCE: usize = 8;
/// VMs looked up, and put on their way, at once.
const PAGE: usize = 1_000;
/// What an adopted VM has for an image: nobody knows what it was made from.
pub(super) const IMAGE: &str = "adopted";

/// Which VMs are to be adopted, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptQuery {
    /// Whose they are to be.
    pub tenant: TenantId,
    /// Of this manager only.
    pub manager: Option<ManagerId>,
    /// Only those that their manager calls like this: `*` stands for any text, `?` for a character.
    pub pattern: Option<String>,
    /// What their names begin with, before what their managers call them.
    pub prefix: String,
    /// Their labels.
    pub labels: Labels,
    /// So many at the most.
    pub limit: usize,
}

/// A VM that stands on a manager and is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The id that it gets.
    pub vm: VmId,
    /// Where it stands.
    pub manager: ManagerId,
    /// What its manager knows it by.
    pub key: ForeignKey,
    /// What it is called there.
    pub called: String,
    /// The name that it gets.
    pub name: VmName,
    /// How it is.
    pub facts: VmFacts,
    /// Why it cannot be adopted as it is.
    pub unfit: Option<String>,
    /// When a tombstone with its id was made, if there is one.
    buried: Option<WallMs>,
}

/// What an adoption would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdoptPlan {
    /// Those that would be adopted, by manager and by what they are called there.
    pub items: Vec<Candidate>,
    /// Those that cannot be.
    pub unfit: Vec<Candidate>,
    /// Those above the limit.
    pub left_out: u64,
    /// Managers that were not read, and why.
    pub unread: Vec<(ManagerId, String)>,
}

/// How far an adoption is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopting {
    /// Which.
    pub id: Uuid,
    /// When it was asked for.
    pub started_at: WallMs,
    /// VMs in all.
    pub total: u64,
    /// Those that are taken in.
    pub adopted: u64,
    /// Those that are not yet.
    pub under_way: u64,
    /// Those that cannot be: each is a dead letter, with the reason.
    pub failed: u64,
}

/// An adoption that was asked for. Kept to say how far it is, no more: it goes on without.
pub(super) struct Asked {
    id: Uuid,
    started_at: WallMs,
    vms: Vec<(VmId, Option<WallMs>)>,
}

impl Gateway {
    /// What an adoption would do. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] `invalid_adoption`; [`Error::NotFound`]: the manager; [`Error::NotReady`].
    pub async fn adopt_plan(&self, query: &AdoptQuery) -> Result<AdoptPlan> {
        self.ready()?;
        if !(1..=ADOPT_MAX).contains(&query.limit) {
            return Err(invalid(format!("`limit` is 1 to {ADOPT_MAX}: adopt the rest afterwards")));
        }
        if !query.prefix.is_empty() && query.prefix.parse::<VmName>().is_err() {
            return Err(invalid("`prefix` begins a VM's name: [A-Za-z0-9._-], the first alphanumeric".to_owned()));
        }
        let managers: Vec<ManagerId> = match query.manager {
            Some(manager) => {
                self.known(manager)?;
                vec![manager]
            }
            None => self.inner.process.names.iter().map(|(_, id)| *id).collect(),
        };
        let read = futures::stream::iter(managers).map(|manager| async move { (manager, self.foreign(manager).await) });
        // In the order of managers, so that the same VMs stand in the same place each time.
        let mut read = read.buffered(AT_ONCE);
        let mut plan = AdoptPlan::default();
        while let Some((manager, foreign)) = read.next().await {
            match foreign {
                Ok(foreign) => self.plan_one(query, &mut plan, manager, foreign).await?,
                Err(reason) => plan.unread.push((manager, reason)),
            }
        }
        Ok(plan)
    }

    async fn foreign(&self, manager: ManagerId) -> Result<Vec<ForeignVm>, String> {
        let route = self.inner.process.routes.of_manager(&manager).ok_or("nobody fronts it")?;
        match self.ask(&route.peer, Request::Foreign(manager)).await? {
            Response::Foreign(foreign) => Ok(foreign),
            Response::Failed { detail } => Err(detail),
            _ => Err("its owner is changing".to_owned()),
        }
    }

    async fn plan_one(
        &self,
        query: &AdoptQuery,
        plan: &mut AdoptPlan,
        manager: ManagerId,
        mut foreign: Vec<ForeignVm>,
    ) -> Result<()> {
        let pattern = query.pattern.as_deref().map(WildMatch::new);
        foreign.retain(|vm| pattern.as_ref().is_none_or(|pattern| pattern.matches(&vm.name)));
        foreign.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
        for some in foreign.chunks(PAGE) {
            let ids: Vec<VmId> = some.iter().map(|vm| VmId::adopted(manager, &vm.key)).collect();
            let known = self.directory().vms(ids.clone()).await?;
            for ((vm, id), known) in some.iter().zip(ids).zip(known) {
                // One that is being adopted is known already, and not its manager's any more.
                let buried = match known {
                    Some(known) if known.is_deleted() => Some(known.created_at),
                    Some(_) => continue,
                    None => None,
                };
                let candidate = Candidate {
                    vm: id,
                    manager,
                    key: vm.key.clone(),
                    called: vm.name.clone(),
                    name: name_of(&query.prefix, vm),
                    facts: vm.facts.clone(),
                    unfit: vm.unfit.clone(),
                    buried,
                };
                match &candidate.unfit {
                    Some(_) => plan.unfit.push(candidate),
                    None if plan.items.len() < query.limit => plan.items.push(candidate),
                    None => plan.left_out += 1,
                }
            }
        }
        Ok(())
    }

    /// Adopts what [`Gateway::adopt_plan`] plans, if that is `confirm` VMs. Durable on return: from there
    /// it goes on by itself. Dropped, or failed, half way, the same call again adopts the rest.
    ///
    /// # Errors
    /// As [`Gateway::adopt_plan`]; [`Error::Conflict`] `count_differs`; as [`Gateway::submit`].
    pub async fn adopt(&self, query: &AdoptQuery, confirm: usize, by: Operator) -> Result<(Uuid, AdoptPlan)> {
        let process = &self.inner.process;
        let plan = self.adopt_plan(query).await?;
        if plan.items.len() != confirm {
            let message = format!("{} VMs would be adopted, not {confirm}: nothing was done", plan.items.len());
            return Err(Error::Conflict { code: "count_differs", message });
        }
        process.bus.accepting()?;
        let at = process.env.wall();
        let template = template(query.labels.clone());
        self.note_change(by, format!("adopt {confirm} VMs for tenant {}", query.tenant)).await?;
        let piece = |candidate: &Candidate| {
            let adoption = Adoption {
                name: candidate.name.clone(),
                size: candidate.facts.size,
                template: Arc::clone(&template),
                manager: candidate.manager,
                foreign: Some(candidate.key.clone()),
                op: OpNumber::ZERO,
            };
            work(candidate.vm, query.tenant.clone(), at, Task::Adopt(Arc::new(adoption)))
        };
        self.put_work(plan.items.iter().map(piece)).await?;
        let id = Uuid::from_u64_pair(process.env.random_u64(), process.env.random_u64());
        let vms = plan.items.iter().map(|candidate| (candidate.vm, candidate.buried)).collect();
        let mut adoptions = self.inner.adoptions.lock().unwrap_or_else(PoisonError::into_inner);
        if adoptions.len() == KEPT_MAX {
            adoptions.pop_front();
        }
        adoptions.push_back(Arc::new(Asked { id, started_at: at, vms }));
        Ok((id, plan))
    }

    /// Puts work for VMs on the queues of their homes. Durable on return; work that comes twice is done once.
    pub(super) async fn put_work(&self, work: impl Iterator<Item = Work>) -> Result<u64> {
        let process = &self.inner.process;
        let mut put = 0;
        let mut work = work.peekable();
        while work.peek().is_some() {
            let mut by_shard: BTreeMap<ShardId, Vec<bytes::Bytes>> = BTreeMap::new();
            for work in work.by_ref().take(PAGE) {
                put += 1;
                let shard = work.vm.shard(process.count);
                by_shard.entry(shard).or_default().push(JobItem::Work(Arc::new(work)).encode());
            }
            let queue = |shard| Queue { shard, kind: QueueKind::Jobs };
            process.bus.publish_all(by_shard.into_iter().map(|(shard, items)| (queue(shard), items)).collect()).await?;
        }
        Ok(put)
    }

    /// How far an adoption is, as the directory knows it. The last 16 are kept, in memory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotReady`].
    pub async fn adopting(&self, id: Uuid) -> Result<Adopting> {
        let asked = {
            let adoptions = self.inner.adoptions.lock().unwrap_or_else(PoisonError::into_inner);
            adoptions.iter().find(|asked| asked.id == id).cloned()
        };
        let asked = asked.ok_or_else(|| Error::NotFound { what: What::Adoption, id: id.to_string() })?;
        let (started_at, total) = (asked.started_at, asked.vms.len() as u64);
        let mut far = Adopting { id, started_at, total, adopted: 0, under_way: 0, failed: 0 };
        for some in asked.vms.chunks(PAGE) {
            let known = self.directory().vms(some.iter().map(|(vm, _)| *vm).collect()).await?;
            for ((_, buried), vm) in some.iter().zip(known) {
                *match stage(vm.as_ref(), *buried) {
                    Stage::Adopted => &mut far.adopted,
                    Stage::UnderWay => &mut far.under_way,
                    Stage::Failed => &mut far.failed,
                } += 1;
            }
        }
        Ok(far)
    }
}

enum Stage {
    UnderWay,
    Adopted,
    Failed,
}

fn stage(vm: Option<&Vm>, buried: Option<WallMs>) -> Stage {
    match vm {
        None => Stage::UnderWay,
        // The tombstone that was there before stands for work that has not come yet.
        Some(vm) if vm.is_deleted() && Some(vm.created_at) == buried => Stage::UnderWay,
        Some(vm) if vm.is_deleted() => Stage::Failed,
        Some(vm) if vm.state() == VmState::Creating => Stage::UnderWay,
        Some(_) => Stage::Adopted,
    }
}

/// Work on a VM that no job waits for.
pub(super) fn work(vm: VmId, tenant: TenantId, at: WallMs, task: Task) -> Work {
    Work { vm, job: JobId::from_uuid(Uuid::nil()), index: 0, tenant, accepted_at: at, deadline_at: None, task }
}

/// What adopted VMs have beside their shape.
pub(super) fn template(labels: Labels) -> Arc<Template> {
    Arc::new(Template { image: IMAGE.to_owned(), labels, require: Labels::new(), policy: Policy::default() })
}

fn invalid(message: String) -> Error {
    Error::Invalid { code: "invalid_adoption", message }
}

/// What a VM is to be called: as its manager calls it, as far as that is a name of ours.
fn name_of(prefix: &str, vm: &ForeignVm) -> VmName {
    const MAX: usize = 63;
    let ours = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let whole = format!("{prefix}{}", vm.name.chars().map(ours).collect::<String>());
    let name: String = whole.trim_start_matches(['.', '_', '-']).chars().take(MAX).collect();
    name.parse().unwrap_or_else(|_| {
        let key: String = vm.key.as_str().chars().map(ours).take(MAX - 3).collect();
        format!("vm-{key}").parse().expect("a key begins alphanumeric, and is cut to what fits")
    })
}

#[cfg(test)]
mod tests {
    use cellbus_bus::job::Size;
    use cellbus_directory::PowerState;

    use super::*;

    fn called(name: &str) -> ForeignVm {
        let facts = VmFacts {
            host: "h1".parse().unwrap(),
            power: PowerState::Running,
            size: Size { vcpus: 1, memory_mib: 1, disk_gib: 1 },
            snapshots: Vec::new(),
        };
        ForeignVm { key: "vm-7".parse().unwrap(), name: name.to_owned(), facts, unfit: None }
    }

    #[test]
    fn patterns_are_like_those_of_a_shell() {
        for (text, pattern) in
            [("web-1", "web-*"), ("web-1", "*"), ("", "*"), ("abcbc", "a*bc"), ("ü1", "?1"), ("a", "a")]
        {
            assert!(WildMatch::new(pattern).matches(text), "{text} {pattern}");
        }
        for (text, pattern) in [("web", "web-*"), ("a", ""), ("", "?"), ("abcb", "a*bc"), ("A", "a")] {
            assert!(!WildMatch::new(pattern).matches(text), "{text} {pattern}");
        }
    }

    #[test]
    fn whatever_a_manager_calls_a_vm_becomes_a_name() {
        for (prefix, called_there, name) in [
            ("", "web-1", "web-1"),
            ("old-", "Büro Server (2)", "old-B-ro-Server--2-"),
            ("", "-x", "x"),
            ("", "((", "vm-vm-7"),
            ("", "", "vm-vm-7"),
        ] {
            assert_eq!(name_of(prefix, &called(called_there)).as_str(), name);
        }
        assert_eq!(name_of("p-", &called(&"x".repeat(500))).as_str().len(), 63);
    }
}
