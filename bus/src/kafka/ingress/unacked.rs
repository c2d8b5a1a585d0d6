//! A look at what no cell has acked, for backups: what is committed, and what lies beyond.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::contract::{Result, Unacked};
use crate::ids::Seq;

use super::super::Shared;
use super::super::feed::Came;
use super::super::layout::Place;

/// Bytes looked at in one go.
const BYTES: usize = 4 << 20;
/// Messages looked at in one go.
const MESSAGES: i64 = 1000;
/// Bits of a place that say where in its partition it is.
const OFFSET_BITS: u32 = 40;

/// Partitions in the order in which this process has first seen them, so that a place in the ingress,
/// which has many partitions, is one number.
#[derive(Default)]
pub(in super::super) struct Order(Mutex<BTreeMap<Place, usize>>);

impl Order {
    /// Those that are known, in their order, with these.
    fn with(&self, places: Vec<Place>) -> Vec<Place> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            let next = known.len();
            known.entry(place).or_insert(next);
        }
        let mut ordered: Vec<(usize, Place)> = known.iter().map(|(place, at)| (*at, place.clone())).collect();
        ordered.sort_unstable();
        ordered.into_iter().map(|(_, place)| place).collect()
    }
}

fn place_of(index: usize, offset: i64) -> Seq {
    let (index, offset) = (u64::try_from(index).unwrap_or(0), u64::try_from(offset).unwrap_or(0));
    Seq((index << OFFSET_BITS) + offset + 1)
}

pub(super) async fn look(shared: &Arc<Shared>, after: Seq, max: usize) -> Result<Vec<Unacked>> {
    shared.reachable()?;
    let places = shared.ingress_order.with(shared.tenants_partitions().await?);
    let first = usize::try_from(after.0 >> OFFSET_BITS).unwrap_or(usize::MAX);
    let from = i64::try_from(after.0 & ((1 << OFFSET_BITS) - 1)).unwrap_or(0);
    let done = shared.done_of(&places).await?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for (index, place) in places.iter().enumerate().skip(first) {
        let Some(tenant) = shared.layout.tenant(&place.topic).map(str::to_owned) else { continue };
        let done = done.get(place).cloned().unwrap_or_default();
        let (low, high) = shared.watermarks(place).await?;
        let mut next = low.max(done.below).max(if index == first { from } else { 0 });
        while next < high {
            let to = high.min(next + MESSAGES);
            for came in shared.range(place, next, to).await? {
                if done.has(came.offset) {
                    continue;
                }
                bytes += came.bytes();
                found.push(unacked(index, tenant.clone(), came));
                if found.len() >= max || bytes >= BYTES {
                    return Ok(found);
                }
            }
            next = to;
        }
    }
    Ok(found)
}

fn unacked(index: usize, tenant: String, came: Came) -> Unacked {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let mut headers: Vec<_> =
        came.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), text(value))).collect();
    headers.sort();
    Unacked { seq: place_of(index, came.offset), tenant, headers, body: came.body.unwrap_or_default() }
}
