//! A batch: a JSON list of events, taken whole or not at all.

use std::collections::HashMap;
use std::fmt;

use foldhash::fast::FixedState;
use serde::de::{DeserializeSeed, IgnoredAny, SeqAccess, Visitor};

use super::json::{self, Node, Reading, Value};
use super::rejection::{BatchRejection, Code, Rejection};
use super::{Limits, TenantRule, body_fits, event};
use crate::ids::JobId;
use crate::job::{Digest, Job};

/// The jobs of a batch, in its order.
///
/// The same event twice in one batch is fine and gives the same job twice; the same key with other
/// data is refused, for the later of the two.
///
/// # Errors
/// With every refused member and its index, or with what is wrong with the batch as a whole.
pub fn parse_batch(body: &[u8], tenant: TenantRule<'_>, limits: &Limits) -> Result<Vec<Job>, BatchRejection> {
    let text = body_fits(body, limits).and_then(|()| json::utf8(body)).map_err(BatchRejection::Whole)?;
    let mut batch =
        Batch { tenant, limits, jobs: Vec::new(), keys: HashMap::default(), refused: Vec::new(), seen: 0, whole: None };
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = (&mut batch).deserialize(&mut reader).and_then(|()| reader.end());
    if let Some(whole) = batch.whole {
        return Err(BatchRejection::Whole(whole));
    }
    if let Err(error) = read {
        return Err(BatchRejection::Whole(json::not_json(&error, Reading::default())));
    }
    if batch.seen == 0 {
        let message = "the batch is empty; send at least one event";
        return Err(BatchRejection::Whole(Rejection::new(Code::NotAnEvent, "", message)));
    }
    if batch.refused.is_empty() { Ok(batch.jobs) } else { Err(BatchRejection::Members(batch.refused)) }
}

struct Batch<'t> {
    tenant: TenantRule<'t>,
    limits: &'t Limits,
    jobs: Vec<Job>,
    /// Looked up, never walked.
    keys: HashMap<JobId, Digest, FixedState>,
    refused: Vec<(usize, Rejection)>,
    seen: usize,
    whole: Option<Rejection>,
}

impl Batch<'_> {
    fn take(&mut self, node: Node<'_>) -> Result<(), Rejection> {
        let job = event(node, self.tenant)?;
        if let Some(digest) = self.keys.get(&job.id)
            && *digest != job.digest
        {
            let message = "an earlier member of the batch has the same tenant, source and id and asks for something else; give this one an id of its own";
            return Err(Rejection::new(Code::BatchConflict, "/id", message));
        }
        self.keys.insert(job.id, job.digest);
        // One bad member refuses all: from then on only problems are of interest.
        if self.refused.is_empty() {
            self.jobs.push(job);
        }
        Ok(())
    }
    fn refuse(&mut self, index: usize, mut rejection: Rejection) {
        self.jobs = Vec::new();
        rejection.pointer.insert_str(0, &format!("/{index}"));
        self.refused.push((index, rejection));
    }
}

impl<'de> DeserializeSeed<'de> for &mut Batch<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// One member, or the end of the list.
struct Member<'b, 't>(&'b mut Batch<'t>);
impl<'de> DeserializeSeed<'de> for Member<'_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let index = self.0.seen;
        if index == self.0.limits.batch_max {
            let message = format!("more than the {index} events that a batch may have; send several batches");
            self.0.whole = Some(Rejection::new(Code::TooLarge, "", message));
            return Err(serde::de::Error::custom("too many"));
        }
        self.0.seen += 1;
        let reading = Reading::default();
        let node = match (Value { reading: &reading, depth: 0 }).deserialize(deserializer) {
            Ok(node) => node,
            Err(error) => {
                // Numbers that no number type holds end the reading, and name their place.
                if error.to_string().starts_with("number out of range")
                    && let Some(mut problem) = reading.into_problem()
                {
                    problem.pointer.insert_str(0, &format!("/{index}"));
                    self.0.whole = Some(problem);
                }
                return Err(error);
            }
        };
        let taken = match reading.into_problem() {
            None => self.0.take(node),
            Some(problem) => Err(problem),
        };
        if let Err(rejection) = taken {
            self.0.refuse(index, rejection);
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut Batch<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of events")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Member(self))?.is_some() {}
        Ok(())
    }
    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.not_a_list("an object; send it as application/cloudevents+json");
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.not_a_list("null");
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.not_a_list("true or false");
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.not_a_list("a number");
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.not_a_list("a number");
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.not_a_list("a number");
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.not_a_list("text");
        Ok(())
    }
}

impl Batch<'_> {
    fn not_a_list(&mut self, what: &str) {
        let message = format!("a batch is a JSON list of CloudEvents; this is {what}");
        self.whole = Some(Rejection::new(Code::NotAnEvent, "", message));
    }
}
