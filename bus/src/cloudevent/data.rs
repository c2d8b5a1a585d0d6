//! `data` of each job type, from JSON to what [`crate::job`] says.

use std::str::FromStr;
use std::time::Duration;

use super::fields::{
    self, COUNT_MAX, DEADLINE_SECONDS_MAX, DISK_GIB_MAX, Field, LABEL_KEY_MAX, LABELS_MAX, MEMORY_MIB_MAX,
    TEXT_CHARS_MAX, VCPUS_MAX,
};
use super::json::{Members, Node};
use super::rejection::{Code, Rejection, nearest, pointer_step, shown};
use crate::ids::{InvalidId, JobId, VmId};
use crate::job::{
    JobKind, Labels, Layout, MigrateTo, Operation, Policy, Power, Provision, Request, Size, StopMode, Target,
};

/// An object whose keys are all known.
struct Object<'n, 'a> {
    at: &'static str,
    fields: &'static [Field],
    members: &'n [(std::borrow::Cow<'a, str>, Node<'a>)],
}

impl<'n, 'a> Object<'n, 'a> {
    fn new(at: &'static str, fields: &'static [Field], members: &'n Members<'a>) -> Result<Self, Rejection> {
        for (key, _) in members {
            if !fields.iter().any(|field| field.name == key) {
                let hint = nearest(key, fields.iter().map(|f| f.name));
                let message = if fields.is_empty() {
                    format!("`{}` is not known: this type takes no fields", shown(key))
                } else {
                    format!("`{}` is not a field here{hint}", shown(key))
                };
                return Err(Rejection::new(Code::UnknownField, format!("{at}{}", pointer_step(key)), message));
            }
        }
        Ok(Self { at, fields, members })
    }

    fn reject(&self, name: &str, code: Code, message: impl Into<String>) -> Rejection {
        Rejection::new(code, format!("{}/{name}", self.at), message)
    }
    fn rule(&self, name: &str) -> &'static str {
        self.fields.iter().find(|f| f.name == name).map_or("left out", |f| f.rule)
    }
    /// The value; null is the same as nothing.
    fn get(&self, name: &str) -> Option<&'n Node<'a>> {
        let (_, node) = self.members.iter().find(|(key, _)| key == name)?;
        (*node != Node::Null).then_some(node)
    }
    fn missing(&self, name: &str) -> Rejection {
        self.reject(name, Code::MissingField, format!("`{name}` is required: {}", self.rule(name)))
    }
    fn wrong_type(&self, name: &str, node: &Node<'_>) -> Rejection {
        let message = format!("`{name}` is {}; it must be {}", node.what(), self.rule(name));
        self.reject(name, Code::WrongType, message)
    }
    fn text(&self, name: &str) -> Result<Option<&'n str>, Rejection> {
        match self.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }
    fn whole(&self, name: &str, max: u64) -> Result<Option<u64>, Rejection> {
        let out_of_range = |code, what: &str| {
            let code = if name == "count" { Code::CountOutOfRange } else { code };
            Err(self.reject(name, code, format!("`{name}` is {what}; it must be {}", self.rule(name))))
        };
        match self.get(name) {
            None => Ok(None),
            Some(Node::Whole(0)) => out_of_range(Code::BelowMinimum, "zero"),
            Some(Node::Whole(n)) if *n <= max => Ok(Some(*n)),
            Some(Node::Whole(n)) => out_of_range(Code::AboveMaximum, &n.to_string()),
            Some(Node::Negative(n)) => out_of_range(Code::NegativeNumber, &n.to_string()),
            Some(Node::Float(n)) if *n >= max as f64 => out_of_range(Code::AboveMaximum, "far above its maximum"),
            Some(Node::Float(n)) if *n <= -1.0 => out_of_range(Code::NegativeNumber, "below zero"),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }
    fn whole_u32(&self, name: &str, max: u32) -> Result<Option<u32>, Rejection> {
        let value = self.whole(name, u64::from(max))?;
        Ok(value.map(|n| u32::try_from(n).expect("at most `max`, which is a u32")))
    }
    fn name<T: FromStr<Err = InvalidId>>(&self, name: &str) -> Result<Option<T>, Rejection> {
        self.text(name)?.map(|text| named(text).map_err(|(code, message)| self.reject(name, code, message))).transpose()
    }
    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Rejection> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let message = format!("`{}` is not known; `{name}` must be {}", shown(text), self.rule(name));
                Err(self.reject(name, Code::InvalidValue, message))
            }
        }
    }
    fn labels(&self, name: &str) -> Result<Labels, Rejection> {
        match self.get(name) {
            None => Ok(Labels::new()),
            Some(Node::Object(members)) => labels(&format!("{}/{name}", self.at), members),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }
}

/// A name of any kind, with the most telling code when it is none.
pub(super) fn named<T: FromStr<Err = InvalidId>>(text: &str) -> Result<T, (Code, String)> {
    text.parse().map_err(|error: InvalidId| {
        if text.chars().any(char::is_control) {
            (Code::ControlCharacter, format!("there is a control character in it; {error}"))
        } else if text.len() > if error.rule.starts_with("1 to 63") { 63 } else { 253 } {
            (Code::NameTooLong, format!("it has {} bytes; {error}", text.len()))
        } else {
            (Code::InvalidName, format!("`{}` is not one: {error}", shown(text)))
        }
    })
}

/// Text of up to `max` characters without control characters.
pub(super) fn plain(text: &str, max: usize) -> Result<(), (Code, String)> {
    // Bytes first, so that nothing long is walked.
    if text.len() > max * 4 || text.chars().count() > max {
        return Err((Code::NameTooLong, format!("it has {} bytes; at most {max} characters are taken", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err((Code::ControlCharacter, "there is a control character in it; leave it out".to_owned()));
    }
    Ok(())
}

fn labels(at: &str, members: &Members<'_>) -> Result<Labels, Rejection> {
    few_labels(members.len()).map_err(|(code, message)| Rejection::new(code, at, message))?;
    let mut labels = Labels::new();
    for (key, value) in members {
        let reject = |code, message: String| Rejection::new(code, format!("{at}{}", pointer_step(key)), message);
        label_key(key).map_err(|(code, message)| reject(code, message))?;
        let Node::Text(text) = value else {
            let message = format!("a label's value is text; this is {}", value.what());
            return Err(reject(Code::WrongType, message));
        };
        plain(text, TEXT_CHARS_MAX).map_err(|(code, message)| reject(code, message))?;
        labels.insert(key.as_ref().to_owned(), text.as_ref().to_owned());
    }
    Ok(labels)
}

fn few_labels(count: usize) -> Result<(), (Code, String)> {
    if count > LABELS_MAX {
        return Err((Code::InvalidLabel, format!("{count} labels are more than the {LABELS_MAX} that there may be")));
    }
    Ok(())
}

fn label_key(key: &str) -> Result<(), (Code, String)> {
    let well_formed = (1..=LABEL_KEY_MAX).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'));
    if !well_formed {
        let message = format!("`{}` is no label key: 1 to {LABEL_KEY_MAX} of [A-Za-z0-9._/-]", shown(key));
        return Err((Code::InvalidLabel, message));
    }
    Ok(())
}

/// Whether labels that did not come with a job are as a job's must be.
///
/// # Errors
/// A code, and a sentence that names the label.
pub fn check_labels(labels: &Labels) -> Result<(), (Code, String)> {
    few_labels(labels.len())?;
    labels.iter().try_for_each(|(key, value)| {
        label_key(key)?;
        plain(value, TEXT_CHARS_MAX).map_err(|(code, message)| (code, format!("`{}`: {message}", shown(key))))
    })
}

/// The request, and how long it may wait.
pub(super) fn request(
    kind: JobKind,
    subject: Option<&str>,
    data: Option<&Node<'_>>,
) -> Result<(Request, Option<Duration>), Rejection> {
    let none = Members::new();
    let members = match data {
        None | Some(Node::Null) => &none,
        Some(Node::Object(members)) => members,
        Some(other) => {
            let message = format!("`data` is {}; it must be an object", other.what());
            return Err(Rejection::new(Code::WrongType, "/data", message));
        }
    };
    let data = Object::new("/data", fields::of(kind), members)?;
    let operation = match kind {
        JobKind::Provision => {
            let provision = provision(&data)?;
            return Ok((Request::Provision(provision), deadline(&data)?));
        }
        JobKind::Cancel => return Ok((Request::Cancel(job_subject(subject)?), None)),
        JobKind::Start => Operation::Start,
        JobKind::Stop => Operation::Stop(mode(&data)?),
        JobKind::Restart => Operation::Restart(mode(&data)?),
        JobKind::Suspend => Operation::Suspend,
        JobKind::Resume => Operation::Resume,
        JobKind::Resize => resize(&data)?,
        JobKind::Snapshot => Operation::Snapshot(data.name("snapshot")?.ok_or_else(|| data.missing("snapshot"))?),
        JobKind::Revert => Operation::Revert(data.name("snapshot")?.ok_or_else(|| data.missing("snapshot"))?),
        JobKind::SnapshotDelete => {
            Operation::SnapshotDelete(data.name("snapshot")?.ok_or_else(|| data.missing("snapshot"))?)
        }
        JobKind::Migrate => Operation::Migrate(migrate(&data)?),
        JobKind::Delete => Operation::Delete,
    };
    Ok((Request::Operate(vm_subject(subject)?, operation), deadline(&data)?))
}

fn deadline(data: &Object<'_, '_>) -> Result<Option<Duration>, Rejection> {
    Ok(data.whole("deadline_seconds", DEADLINE_SECONDS_MAX)?.map(Duration::from_secs))
}

fn mode(data: &Object<'_, '_>) -> Result<StopMode, Rejection> {
    let mode = data.choice("mode", &[("graceful", StopMode::Graceful), ("hard", StopMode::Hard)])?;
    Ok(mode.unwrap_or_default())
}

fn provision(data: &Object<'_, '_>) -> Result<Provision, Rejection> {
    let name: crate::ids::VmName = data.name("name")?.ok_or_else(|| data.missing("name"))?;
    let count = data.whole_u32("count", COUNT_MAX)?.unwrap_or(1);
    // The last VM's name must be a name too.
    if count > 1 && name.as_str().len() + 1 + (count - 1).to_string().len() > 63 {
        let message = format!("with a count of {count} the last VM would be `{name}-{}`, longer than 63", count - 1);
        return Err(data.reject("name", Code::NameTooLong, message));
    }
    let size = Size {
        vcpus: data.whole_u32("vcpus", VCPUS_MAX)?.ok_or_else(|| data.missing("vcpus"))?,
        memory_mib: data.whole("memory_mib", MEMORY_MIB_MAX)?.ok_or_else(|| data.missing("memory_mib"))?,
        disk_gib: data.whole("disk_gib", DISK_GIB_MAX)?.ok_or_else(|| data.missing("disk_gib"))?,
    };
    let image = data.text("image")?.ok_or_else(|| data.missing("image"))?;
    plain(image, TEXT_CHARS_MAX).map_err(|(code, message)| data.reject("image", code, message))?;
    if image.is_empty() {
        return Err(data.reject("image", Code::InvalidValue, "`image` is empty; name what the VM boots from"));
    }
    Ok(Provision {
        name,
        count,
        size,
        image: image.to_owned(),
        labels: data.labels("labels")?,
        require: data.labels("require")?,
        policy: match data.get("policy") {
            None => Policy::default(),
            Some(Node::Object(members)) => policy(members)?,
            Some(other) => return Err(data.wrong_type("policy", other)),
        },
        power: data.choice("power", &[("on", Power::On), ("off", Power::Off)])?.unwrap_or_default(),
    })
}

fn policy(members: &Members<'_>) -> Result<Policy, Rejection> {
    #[derive(Clone, Copy, PartialEq)]
    enum Over {
        Managers,
        Hosts,
    }
    let policy = Object::new("/data/policy", fields::POLICY, members)?;
    let over = [("manager", Over::Managers), ("host", Over::Hosts)];
    let (spread, pack) = (policy.choice("spread", &over)?, policy.choice("pack", &over)?);
    if spread.is_some() && spread == pack {
        let message = "`spread` and `pack` name the same; take one of them out";
        return Err(policy.reject("pack", Code::ContradictoryPolicy, message));
    }
    let layout = |of| if pack == Some(of) { Layout::Pack } else { Layout::Spread };
    let out = Policy {
        hosts: layout(Over::Hosts),
        managers: layout(Over::Managers),
        affinity: policy.name("affinity")?,
        anti_affinity: policy.name("anti_affinity")?,
    };
    if out.affinity.is_some() && out.affinity == out.anti_affinity {
        let message = "`affinity` and `anti_affinity` name the same group; take one of them out";
        return Err(policy.reject("anti_affinity", Code::ContradictoryPolicy, message));
    }
    Ok(out)
}

fn resize(data: &Object<'_, '_>) -> Result<Operation, Rejection> {
    let vcpus = data.whole_u32("vcpus", VCPUS_MAX)?;
    let memory_mib = data.whole("memory_mib", MEMORY_MIB_MAX)?;
    let disk_gib = data.whole("disk_gib", DISK_GIB_MAX)?;
    if vcpus.is_none() && memory_mib.is_none() && disk_gib.is_none() {
        let message = "a resize names at least one of `vcpus`, `memory_mib` and `disk_gib`";
        return Err(Rejection::new(Code::NothingToChange, "/data", message));
    }
    Ok(Operation::Resize { vcpus, memory_mib, disk_gib })
}

fn migrate(data: &Object<'_, '_>) -> Result<MigrateTo, Rejection> {
    match (data.name("host")?, data.name("manager")?) {
        (Some(host), None) => Ok(MigrateTo::Host(host)),
        (None, Some(manager)) => Ok(MigrateTo::Manager(manager)),
        (None, None) => {
            let message = "a migrate names a `host` of the VM's manager, or another `manager`";
            Err(Rejection::new(Code::MissingField, "/data", message))
        }
        (Some(_), Some(_)) => {
            let message = "a migrate names a `host` or a `manager`, not both: another manager picks the host itself";
            Err(data.reject("manager", Code::InvalidValue, message))
        }
    }
}

fn vm_subject(subject: Option<&str>) -> Result<Target, Rejection> {
    let text = subject.ok_or_else(|| {
        let message = "`subject` is required for this type: the VM's id, or its name where that is unique";
        Rejection::new(Code::MissingAttribute, "/subject", message)
    })?;
    // A well-formed VM name may look like an id; it is then taken as one.
    if let Ok(id) = text.parse::<VmId>() {
        return Ok(Target::Id(id));
    }
    named(text).map(Target::Name).map_err(|(_, message)| {
        Rejection::new(
            Code::InvalidSubject,
            "/subject",
            format!("`subject` is neither a VM's id nor a name: {message}"),
        )
    })
}

fn job_subject(subject: Option<&str>) -> Result<JobId, Rejection> {
    let text = subject.ok_or_else(|| {
        let message = "`subject` is required for this type: the id of the job to be called off";
        Rejection::new(Code::MissingAttribute, "/subject", message)
    })?;
    text.parse().map_err(|error| {
        Rejection::new(Code::InvalidSubject, "/subject", format!("`{}` is not one: {error}", shown(text)))
    })
}
