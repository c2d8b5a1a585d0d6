//! What a cell does for its shards once their records are durable: queue items, events, names.
//!
//! One task a cell takes what all its shards want published and puts it on the bus in one step, so
//! that batches grow by themselves when there is much to do. Items go out in the order in which
//! they were asked for, one step at a time, and those of one queue share messages; events go likewise,
//! beside them.

use std::collections::BTreeMap;

use bytes::Bytes;
use cellbus_bus::contract::{Event, Queue, QueueKind};
use cellbus_bus::ids::{ManagerId, ShardId, TenantId, VmId, VmName};
use cellbus_directory::record::IntentKey;
use cellbus_workflows::pack::pack;
use cellbus_workflows::{ControlItem, EffectAnswer};

use crate::directory::Fresh;
use crate::front::Stranded;
use crate::mailbox::Mailbox;
use crate::process::Process;
use crate::runner;

/// Publications that wait. They are open intents of shards, which bound them; what does not fit
/// is answered as failed and comes again.
const WAITING_MAX: usize = 200_000;
/// Bytes of items published in one step.
const STEP_BYTES_MAX: usize = 4 << 20;
/// Names looked up in one step.
const STEP_NAMES_MAX: usize = 10_000;

/// Whose effect it is.
pub(crate) struct Whose {
    pub(crate) runner: runner::Handle,
    pub(crate) intent: IntentKey,
}

struct Items {
    whose: Option<Whose>,
    items: Vec<(Queue, Vec<Bytes>)>,
}
struct OneEvent {
    whose: Whose,
    event: Event,
}
struct Name {
    whose: Whose,
    tenant: TenantId,
    name: VmName,
}

/// See the module.
pub(crate) struct Effects {
    items: Mailbox<Items>,
    events: Mailbox<OneEvent>,
    names: Mailbox<Name>,
}

/// Answers, by the shard that gets them.
#[derive(Default)]
struct Answers(BTreeMap<ShardId, (Option<runner::Handle>, Carried)>);
type Carried = Vec<(IntentKey, EffectAnswer)>;

impl Answers {
    fn add(&mut self, whose: Whose, answer: EffectAnswer) {
        let (handle, answers) = self.0.entry(whose.runner.shard).or_default();
        *handle = Some(whose.runner);
        answers.push((whose.intent, answer));
    }
    fn send(self) {
        for (handle, answers) in self.0.into_values() {
            if let Some(handle) = handle {
                // A shard whose mailbox is full, or that has gone, makes them again.
                let _ = handle.put(runner::Message::Effects(answers));
            }
        }
    }
}

impl Effects {
    pub(crate) fn new() -> Self {
        Self { items: Mailbox::new(WAITING_MAX), events: Mailbox::new(WAITING_MAX), names: Mailbox::new(WAITING_MAX) }
    }

    /// Items for queues, for an intent of a shard.
    pub(crate) fn publish(&self, whose: Whose, items: Vec<(Queue, Vec<Bytes>)>) {
        if let Err(full) = self.items.put(Items { whose: Some(whose), items }) {
            refuse(full.0.whose);
        }
    }
    /// An event, for an intent of a shard.
    pub(crate) fn event(&self, whose: Whose, event: Event) {
        if let Err(full) = self.events.put(OneEvent { whose, event }) {
            refuse(Some(full.0.whose));
        }
    }
    /// The VMs of a name, for an intent of a shard.
    pub(crate) fn resolve(&self, whose: Whose, tenant: TenantId, name: VmName) {
        if let Err(full) = self.names.put(Name { whose, tenant, name }) {
            refuse(Some(full.0.whose));
        }
    }
    /// Tells the homes of VMs to read them again. Nobody waits for it: what is lost here, the next
    /// audit finds.
    pub(crate) fn observed(&self, process: &Process, manager: ManagerId, vms: Vec<VmId>) {
        let items = vms.into_iter().map(|vm| (vm, ControlItem::Observed { vm, manager }));
        self.tell_homes(process, manager, items);
    }
    /// Tells the homes of VMs that their hosts are dead. Nobody waits for it: it is said again.
    pub(crate) fn died(&self, process: &Process, manager: ManagerId, vms: Vec<Stranded>) {
        let items =
            vms.into_iter().map(|Stranded { vm, from, to }| (vm, ControlItem::HostDied { vm, manager, from, to }));
        self.tell_homes(process, manager, items);
    }
    fn tell_homes(&self, process: &Process, manager: ManagerId, items: impl Iterator<Item = (VmId, ControlItem)>) {
        let to = |(vm, item): (VmId, ControlItem)| {
            let queue = Queue { shard: vm.shard(process.count), kind: QueueKind::Control };
            (queue, vec![item.encode()])
        };
        if self.items.put(Items { whose: None, items: items.map(to).collect() }).is_err() {
            tracing::warn!(%manager, "observations were dropped: too much waits to be published");
        }
    }

    /// Tells a manager's shard which mark was left there. Nobody waits for it: what is lost here, the next
    /// mark makes good.
    pub(crate) fn marked(&self, process: &Process, manager: ManagerId, mark: u64) {
        let queue = Queue { shard: manager.shard(process.count), kind: QueueKind::Control };
        let items = vec![(queue, vec![ControlItem::ManagerMarked { manager, mark }.encode()])];
        if self.items.put(Items { whose: None, items }).is_err() {
            tracing::warn!(%manager, "a mark was dropped: too much waits to be published");
        }
    }

    /// Publishes items for ever.
    pub(crate) async fn run_items(&self, process: &Process) {
        loop {
            self.items.ready().await;
            let mut waiting = self.items.take().into_iter().peekable();
            while waiting.peek().is_some() {
                let (mut whose, mut bytes) = (Vec::new(), 0);
                let mut by_queue: BTreeMap<(ShardId, bool), Vec<Bytes>> = BTreeMap::new();
                while bytes < STEP_BYTES_MAX
                    && let Some(next) = waiting.next()
                {
                    whose.extend(next.whose);
                    for (queue, items) in next.items {
                        bytes += items.iter().map(Bytes::len).sum::<usize>();
                        by_queue.entry((queue.shard, queue.kind == QueueKind::Control)).or_default().extend(items);
                    }
                }
                let items = by_queue
                    .into_iter()
                    .map(|((shard, control), items)| {
                        let kind = if control { QueueKind::Control } else { QueueKind::Jobs };
                        (Queue { shard, kind }, pack(kind, items))
                    })
                    .collect();
                answer(whose, process.bus.publish_all(items).await);
            }
        }
    }

    /// Publishes events for ever.
    pub(crate) async fn run_events(&self, process: &Process) {
        loop {
            self.events.ready().await;
            let mut waiting = self.events.take().into_iter().peekable();
            while waiting.peek().is_some() {
                let (mut whose, mut events, mut bytes) = (Vec::new(), Vec::new(), 0);
                while bytes < STEP_BYTES_MAX
                    && let Some(next) = waiting.next()
                {
                    bytes += next.event.body.len();
                    whose.push(next.whose);
                    events.push(next.event);
                }
                answer(whose, process.bus.publish_events(events).await);
            }
        }
    }

    /// Looks names up for ever. Those that wait share one catching up of the directory.
    pub(crate) async fn run_names(&self, process: &Process) {
        loop {
            self.names.ready().await;
            let waiting = self.names.take();
            let mut waiting = waiting.into_iter().peekable();
            while waiting.peek().is_some() {
                let some = waiting.by_ref().take(STEP_NAMES_MAX);
                let (whose, names): (Vec<_>, Vec<_>) = some.map(|name| (name.whose, (name.tenant, name.name))).unzip();
                let mut answers = Answers::default();
                match process.directory.names(names, Fresh::CaughtUp).await {
                    Ok(found) => {
                        for (whose, vms) in whose.into_iter().zip(found) {
                            answers.add(whose, EffectAnswer::Resolved(vms));
                        }
                    }
                    Err(error) => {
                        for whose in whose {
                            answers.add(whose, EffectAnswer::Failed { detail: error.to_string() });
                        }
                    }
                }
                answers.send();
            }
        }
    }
}

fn answer(whose: Vec<Whose>, result: cellbus_bus::Result<()>) {
    let mut answers = Answers::default();
    for whose in whose {
        let answer = match &result {
            Ok(()) => EffectAnswer::Published,
            Err(error) => EffectAnswer::Failed { detail: error.to_string() },
        };
        answers.add(whose, answer);
    }
    answers.send();
}

fn refuse(whose: Option<Whose>) {
    let Some(whose) = whose else { return };
    let mut answers = Answers::default();
    answers.add(whose, EffectAnswer::Failed { detail: "too much waits to be published".to_owned() });
    answers.send();
}
