//! The replica beside this process, and what it answers.

use std::sync::Arc;

use cellbus_bus::ids::{Seq, ShardId};
use cellbus_bus::{Bus, Env};
use cellbus_directory::replica::Replica;
use futures::{StreamExt as _, TryStreamExt as _};

use super::Fresh;
use super::ask::{Answer, Ask, CATCH_UP_LIMIT};
use super::round::Round;
use super::summaries::Summaries;

/// Logs whose ends are asked for at once: each is a request to the bus, of which there may be thousands.
const ENDS_AT_ONCE: usize = 32;

/// See the module.
pub(crate) struct Here {
    pub(super) replica: Arc<Replica>,
    /// What other cells said last.
    pub(crate) summaries: Summaries,
    bus: Arc<dyn Bus>,
    env: Env,
    /// The ends of all logs.
    ends: Round<Vec<(ShardId, Seq)>>,
}

impl Here {
    pub(crate) fn new(replica: Arc<Replica>, bus: Arc<dyn Bus>, env: Env) -> Self {
        Self { replica, summaries: Summaries::new(env.random_u64()), bus, env, ends: Round::default() }
    }

    pub(super) async fn answer(&self, ask: Ask) -> Answer {
        let replica = &self.replica;
        match ask {
            Ask::Vms(ids) => Answer::Vms(ids.into_iter().map(|id| replica.vm(id)).collect()),
            Ask::Job(id) => Answer::Job(replica.job(id).map(Box::new)),
            Ask::List { filter, limit, after, fresh } => {
                if let Err(not_ready) = self.fresh(fresh).await {
                    return not_ready;
                }
                match replica.list(&filter, limit, after.as_deref()) {
                    Ok(page) => Answer::List { items: page.items, next: page.next },
                    Err(error) => Answer::Refused(error),
                }
            }
            Ask::Jobs { filter, limit, after } => match replica.jobs(&filter, limit, after.as_deref()) {
                Ok(page) => Answer::Jobs { items: page.items, next: page.next },
                Err(error) => Answer::Refused(error),
            },
            Ask::Names { names, fresh } => {
                if let Err(not_ready) = self.fresh(fresh).await {
                    return not_ready;
                }
                Answer::Names(names.iter().map(|(tenant, name)| replica.by_name(tenant, name)).collect())
            }
            Ask::Summaries { since } => {
                let (told, cells) = self.summaries.since(since);
                Answer::Summaries { told, cells }
            }
            Ask::Shows { groups, fresh, limit } => {
                let shown = async {
                    for (shard, seq) in groups.iter().flatten() {
                        replica.wait_for(*shard, *seq).await;
                    }
                    match fresh {
                        Fresh::AsItIs => Ok(()),
                        Fresh::CaughtUp => self.catch_up().await,
                    }
                };
                match self.env.timeout(limit, shown).await {
                    Some(Ok(())) => Answer::Shows(vec![true; groups.len()]),
                    Some(Err(error)) => not_ready(error.to_string()),
                    None => {
                        let is_in = |(shard, seq): &(ShardId, Seq)| replica.applied(*shard) >= *seq;
                        let shows = |group: &Vec<_>| fresh == Fresh::AsItIs && group.iter().all(is_in);
                        Answer::Shows(groups.iter().map(shows).collect())
                    }
                }
            }
        }
    }

    async fn fresh(&self, fresh: Fresh) -> Result<(), Answer> {
        match fresh {
            Fresh::AsItIs => Ok(()),
            Fresh::CaughtUp => match self.env.timeout(CATCH_UP_LIMIT, self.catch_up()).await {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err(not_ready(error.to_string())),
                None => Err(not_ready("the directory has not caught up".to_owned())),
            },
        }
    }

    /// Waits until every log has been read to its present end. Give it a time limit.
    async fn catch_up(&self) -> cellbus_bus::Result<()> {
        let ends = self.ends.look(async || {
            let ends: Vec<_> = self.replica.shards().shards().map(|shard| self.end_of(shard)).collect();
            futures::stream::iter(ends).buffered(ENDS_AT_ONCE).try_collect().await
        });
        for (shard, end) in ends.await?.iter() {
            if self.replica.applied(*shard) < *end {
                self.replica.wait_for(*shard, *end).await;
            }
        }
        Ok(())
    }

    async fn end_of(&self, shard: ShardId) -> cellbus_bus::Result<(ShardId, Seq)> {
        Ok((shard, self.bus.log_end(shard).await?))
    }
}

fn not_ready(reason: String) -> Answer {
    Answer::NotReady { reason }
}
