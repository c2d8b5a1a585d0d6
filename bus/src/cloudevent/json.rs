//! JSON from outside, read into a small tree that is bounded while it grows.
//!
//! `serde_json` reads the text; what this adds is what it does not refuse by itself: a key that is
//! there twice, and structures larger or deeper than any event. The tree borrows from the body.
//! A problem inside one value does not end the reading: the rest of the value is skipped, so that a
//! batch can be checked whole.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rejection::{Code, Rejection, pointer_step};

/// Levels of objects in one event. The deepest known one (`data.labels`) is the third.
pub(super) const DEPTH_MAX: usize = 16;
/// Members of one object. The most that is of use is the 64 of `labels`.
const MEMBERS_MAX: usize = 256;
/// Values in one event, all objects together.
const NODES_MAX: usize = 1_024;

/// A JSON value. Lists are only known to be there: no event has any.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'a> {
    Null,
    Bool(bool),
    Whole(u64),
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    List,
    Object(Members<'a>),
}

/// Keys and values, in the order of the text.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, Node<'a>)>;

impl Node<'_> {
    /// What it is, for messages.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Whole(_) | Self::Negative(_) => "a number",
            Self::Float(_) => "a number with a fraction or exponent",
            Self::Text(_) => "text",
            Self::List => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// What reading one event has found so far.
#[derive(Debug, Default)]
pub(super) struct Reading {
    nodes: Cell<usize>,
    problem: RefCell<Option<Rejection>>,
}

impl Reading {
    /// The first problem, if there was one.
    pub(super) fn into_problem(self) -> Option<Rejection> {
        self.problem.into_inner()
    }
    fn failed(&self) -> bool {
        self.problem.borrow().is_some()
    }
    fn fail(&self, code: Code, pointer: String, message: impl Into<String>) {
        let mut problem = self.problem.borrow_mut();
        if problem.is_none() {
            *problem = Some(Rejection::new(code, pointer, message));
        }
    }
    /// The problem lies inside the value of this key.
    fn inside(&self, key: &str) {
        if let Some(problem) = self.problem.borrow_mut().as_mut() {
            problem.pointer.insert_str(0, &pointer_step(key));
        }
    }
}

/// Reads one value. After a problem it gives `Node::Null` and [`Reading::into_problem`] says why.
pub(super) struct Value<'r> {
    pub(super) reading: &'r Reading,
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Node<'de>;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Node<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Node<'de>, E> {
        Ok(Node::Whole(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Node<'de>, E> {
        Ok(u64::try_from(v).map_or(Node::Negative(v), Node::Whole))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Node<'de>, E> {
        Ok(Node::Float(v))
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(v.to_owned())))
    }
    fn visit_string<E>(self, v: String) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(v)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        // Skipped without recursion, whatever is inside.
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::List)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut members: Members<'de> = Vec::with_capacity(8);
        if self.depth >= DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} levels of objects; no event needs more than three");
            self.reading.fail(Code::TooDeep, String::new(), message);
        }
        while !self.reading.failed() {
            let Some(key) = map.next_key_seed(Key)? else { return Ok(Node::Object(members)) };
            if members.iter().any(|(known, _)| *known == key) {
                let message = "this key is there twice; keep one of them, since readers differ in which one counts";
                self.reading.fail(Code::DuplicateKey, pointer_step(&key), message);
                map.next_value::<IgnoredAny>()?;
                break;
            }
            self.reading.nodes.set(self.reading.nodes.get() + 1);
            if members.len() == MEMBERS_MAX || self.reading.nodes.get() > NODES_MAX {
                let message = format!(
                    "more than {MEMBERS_MAX} members in one object or {NODES_MAX} in the event; no event needs as many"
                );
                self.reading.fail(Code::TooLarge, String::new(), message);
                map.next_value::<IgnoredAny>()?;
                break;
            }
            let child = Value { reading: self.reading, depth: self.depth + 1 };
            match map.next_value_seed(child) {
                Ok(node) if !self.reading.failed() => members.push((key, node)),
                Ok(_) => self.reading.inside(&key),
                Err(error) => {
                    // Not JSON after all, except for a number such as 1e999, which is JSON and no
                    // number that any field takes. Note where, in case it was that.
                    if !self.reading.failed() {
                        self.reading.fail(
                            Code::AboveMaximum,
                            String::new(),
                            "this number is larger than any field takes",
                        );
                    }
                    self.reading.inside(&key);
                    return Err(error);
                }
            }
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Node::Null)
    }
}

struct Key;
impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}
impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(v.to_owned()))
    }
}

/// The whole of `bytes` as one value.
pub(super) fn read(bytes: &[u8]) -> Result<Node<'_>, Rejection> {
    let text = utf8(bytes)?;
    let reading = Reading::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let node = Value { reading: &reading, depth: 0 }.deserialize(&mut json).and_then(|node| json.end().map(|()| node));
    match node {
        Ok(node) => reading.into_problem().map_or(Ok(node), Err),
        Err(error) => Err(not_json(&error, reading)),
    }
}

/// `bytes` as text.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Rejection> {
    std::str::from_utf8(bytes).map_err(|error| {
        let message = format!("byte {} is not UTF-8; send JSON in UTF-8", error.valid_up_to());
        Rejection::new(Code::NotJson, "", message)
    })
}

/// What to say of text that the JSON reader does not take.
pub(super) fn not_json(error: &serde_json::Error, reading: Reading) -> Rejection {
    let words = error.to_string();
    match reading.into_problem() {
        Some(number) if words.starts_with("number out of range") => number,
        Some(_) | None => Rejection::new(Code::NotJson, "", format!("the body is not JSON: {words}")),
    }
}
