//! What `data` may hold, type by type: the table that the parser goes by and the documentation shows.

use crate::job::JobKind;

/// One field of `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What it may be, as a person would say it.
    pub rule: &'static str,
    /// What holds when it is left out; `None` if it may not be.
    pub default: Option<&'static str>,
}

const fn required(name: &'static str, rule: &'static str) -> Field {
    Field { name, rule, default: None }
}
const fn optional(name: &'static str, rule: &'static str, default: &'static str) -> Field {
    Field { name, rule, default: Some(default) }
}

/// VMs of one provision.
pub const COUNT_MAX: u32 = 10_000;
/// vCPUs of one VM.
pub const VCPUS_MAX: u32 = 1_024;
/// Memory of one VM: 64 TiB.
pub const MEMORY_MIB_MAX: u64 = 64 << 20;
/// Disk of one VM: 1 PiB.
pub const DISK_GIB_MAX: u64 = 1 << 20;
/// Labels of one VM, and labels that it may ask of its host.
pub const LABELS_MAX: usize = 64;
/// Bytes of a label's key.
pub const LABEL_KEY_MAX: usize = 63;
/// Characters of a label's value, of an image.
pub const TEXT_CHARS_MAX: usize = 255;
/// 30 days.
pub const DEADLINE_SECONDS_MAX: u64 = 30 * 24 * 3600;

const DEADLINE: Field = optional("deadline_seconds", "1 to 2592000 (30 days)", "none: it may wait for ever");
const SNAPSHOT: Field =
    required("snapshot", "the snapshot's name: 1 to 63 of `[A-Za-z0-9._-]`, the first alphanumeric");
const MODE: Field = optional("mode", "`\"graceful\"` or `\"hard\"`", "`\"graceful\"`");

const PROVISION: &[Field] = &[
    required(
        "name",
        "1 to 63 of `[A-Za-z0-9._-]`, the first alphanumeric; with `count` above 1 short enough for `-0`, `-1`, ...",
    ),
    optional("count", "1 to 10000, whole", "1"),
    required("vcpus", "1 to 1024, whole"),
    required("memory_mib", "1 to 67108864 MiB (64 TiB), whole"),
    required("disk_gib", "1 to 1048576 GiB (1 PiB), whole"),
    required("image", "1 to 255 characters, none of them a control character"),
    optional(
        "labels",
        "an object of up to 64 texts; keys 1 to 63 of `[A-Za-z0-9._/-]`, values up to 255 characters without controls",
        "none",
    ),
    optional(
        "require",
        "like `labels`: labels that the host must have; `gear`, `manager` and `host` are labels of every host",
        "none: any host",
    ),
    optional("policy", "an object, see below", "spread over managers and over hosts"),
    optional("power", "`\"on\"` or `\"off\"`", "`\"on\"`"),
    DEADLINE,
];
const RESIZE: &[Field] = &[
    optional("vcpus", "1 to 1024, whole", "stays"),
    optional("memory_mib", "1 to 67108864 MiB (64 TiB), whole", "stays"),
    optional("disk_gib", "1 to 1048576 GiB (1 PiB), whole; never less than now", "stays"),
    DEADLINE,
];
const MIGRATE: &[Field] = &[
    optional(
        "host",
        "a host of the VM's manager: 1 to 253 of `[A-Za-z0-9._:-]`, the first alphanumeric",
        "none; either `host` or `manager` is needed",
    ),
    optional(
        "manager",
        "another manager's configured name: 1 to 63 of `[A-Za-z0-9._-]`, the first alphanumeric",
        "none; either `host` or `manager` is needed",
    ),
    DEADLINE,
];

/// The members of `policy`.
pub const POLICY: &[Field] = &[
    optional("spread", "`\"manager\"` or `\"host\"`: the emptiest first", "both are spread"),
    optional(
        "pack",
        "`\"manager\"` or `\"host\"`: the fullest that still has room first; not the one that `spread` names",
        "neither is packed",
    ),
    optional("affinity", "a group's name: 1 to 63 of `[A-Za-z0-9._-]`; VMs of one group share a host", "none"),
    optional(
        "anti_affinity",
        "a group's name, another than that of `affinity`; no two VMs of one group share a host",
        "none",
    ),
];

/// The fields of `data` for this type.
#[must_use]
pub const fn of(kind: JobKind) -> &'static [Field] {
    match kind {
        JobKind::Provision => PROVISION,
        JobKind::Start | JobKind::Suspend | JobKind::Resume | JobKind::Delete => &[DEADLINE],
        JobKind::Stop | JobKind::Restart => &[MODE, DEADLINE],
        JobKind::Resize => RESIZE,
        JobKind::Snapshot | JobKind::Revert | JobKind::SnapshotDelete => &[SNAPSHOT, DEADLINE],
        JobKind::Migrate => MIGRATE,
        JobKind::Cancel => &[],
    }
}

/// The tables of `ops/docs/jobs.md`, between its markers.
#[must_use]
pub fn markdown() -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    // Types that are alike share a table.
    let mut groups: Vec<(&str, &[Field], Vec<JobKind>)> = Vec::new();
    for kind in JobKind::ALL {
        let subject = match kind {
            JobKind::Provision => "not used",
            JobKind::Cancel => "the job to be called off: its id",
            JobKind::Start
            | JobKind::Stop
            | JobKind::Restart
            | JobKind::Suspend
            | JobKind::Resume
            | JobKind::Resize
            | JobKind::Snapshot
            | JobKind::Revert
            | JobKind::SnapshotDelete
            | JobKind::Migrate
            | JobKind::Delete => "the VM: its id, or its name where that is unique in the tenant",
        };
        match groups.iter_mut().find(|(s, fields, _)| *s == subject && *fields == of(*kind)) {
            Some((_, _, kinds)) => kinds.push(*kind),
            None => groups.push((subject, of(*kind), vec![*kind])),
        }
    }
    for (subject, fields, kinds) in groups {
        let names: Vec<String> = kinds.iter().map(|kind| format!("`io.cellbus.job.{kind}.v1`")).collect();
        // Writing to a String cannot fail.
        let _ = write!(out, "### {}\n\n`subject`: {subject}.\n\n", names.join(", "));
        rows(&mut out, fields);
    }
    out.push_str("### `policy`\n\n");
    rows(&mut out, POLICY);
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn rows(out: &mut String, fields: &[Field]) {
    use std::fmt::Write as _;
    if fields.is_empty() {
        out.push_str("No fields: `data` may be left out.\n\n");
        return;
    }
    out.push_str("| field | may be | when left out |\n|---|---|---|\n");
    for field in fields {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} |",
            field.name,
            field.rule,
            field.default.unwrap_or("refused: it is required")
        );
    }
    out.push('\n');
}
