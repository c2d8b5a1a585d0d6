//! The identifiers of Cellbus: one newtype each, all printing and parsing the same way.
//!
//! Ids that producers and operators can meet are either UUIDs that anyone can compute (jobs, VMs,
//! managers; see `ops/docs/interface.md`, "Ids") or short names with a fixed alphabet (tenants,
//! hosts, cells). A value of one of these types has been checked: parsing is the only way in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// UUIDv5(DNS namespace, `cellbus.io`): the namespace under which every Cellbus id is derived.
pub const NAMESPACE: Uuid = Uuid::from_u128(0xdfd1156a_2e8e_539d_80c4_73f2b02b5662);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct InvalidId {
    /// The kind of id, as a person would call it.
    pub what: &'static str,
    /// The rule that the text breaks.
    pub rule: &'static str,
}

/// `lp(x)`: the length of `x` in bytes as four bytes, big endian, then `x`.
fn length_prefixed(parts: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum());
    for part in parts {
        // Parts are bounded at the edge (at most a few KiB), so the length always fits.
        out.extend_from_slice(&(part.len() as u32).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that is known to be such an id.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self { Self(uuid) }
            /// The UUID itself.
            #[must_use]
            pub const fn uuid(&self) -> Uuid { self.0 }
            /// The sixteen bytes, big endian.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] { self.0.as_bytes() }
            /// The shard that this id lives on, among `count`.
            #[must_use]
            pub fn shard(&self, count: ShardCount) -> ShardId { ShardId::of(self.0, count) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the hyphenated form: one id has one spelling, whatever its letters' case.
                if text.len() != 36 {
                    return Err(InvalidId { what: $what, rule: "a UUID such as f44dec3f-0dad-599c-bfc4-bbe000698666" });
                }
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId {
                    what: $what, rule: "a UUID such as f44dec3f-0dad-599c-bfc4-bbe000698666",
                })
            }
        }
    };
}

uuid_id!(
    /// A job: UUIDv5 of tenant, source and CloudEvents id. It lives on `shard(job id)` for ever.
    JobId, "a job id"
);
uuid_id!(
    /// A VM: derived from the job that provisions it. It lives on `shard(vm id)` for ever.
    VmId, "a VM id"
);
uuid_id!(
    /// A hypervisor manager, derived from its configured name.
    ManagerId, "a manager id"
);

impl JobId {
    /// The id of the job that a producer's event stands for. The same event gives the same job.
    #[must_use]
    pub fn derive(tenant: &str, source: &str, event_id: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, &length_prefixed(&[tenant, source, event_id])))
    }

    /// The `index`-th VM of a provision job. VM 0 has the job's own id, so that a job for one VM
    /// and its VM share a shard.
    #[must_use]
    pub fn vm(&self, index: u32) -> VmId {
        if index == 0 { VmId(self.0) } else { VmId(Uuid::new_v5(&self.0, &index.to_be_bytes())) }
    }
}

impl ManagerId {
    /// The id of the manager with this configured name.
    #[must_use]
    pub fn derive(name: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, &length_prefixed(&["manager", name])))
    }
}

impl VmId {
    /// The id that a VM gets which stands on a manager already and is taken in: always the same, so that
    /// it is taken in once, whoever asks and how often.
    #[must_use]
    pub fn adopted(manager: ManagerId, key: &ForeignKey) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, &length_prefixed(&["adopted", &manager.to_string(), key.as_str()])))
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $max:literal, $first:expr, $rest:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name itself.
            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let first: fn(u8) -> bool = $first;
                let rest: fn(u8) -> bool = $rest;
                let bytes = text.as_bytes();
                let well_formed = bytes.len() <= $max
                    && bytes.first().is_some_and(|b| first(*b))
                    && bytes[1..].iter().all(|b| rest(*b));
                if well_formed { Ok(Self(Arc::from(text))) } else { Err(InvalidId { what: $what, rule: $rule }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> { text.parse() }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self { name.0.as_ref().to_owned() }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str { &self.0 }
        }
    };
}

name_id!(
    /// Who a job and its VMs belong to.
    TenantId, "a tenant", "1 to 63 of [a-z0-9-]", 63,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-',
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
);
name_id!(
    /// A VM's name: unique for nobody, so an id is what a machine should use.
    VmName, "a VM name", "1 to 63 of [A-Za-z0-9._-], the first alphanumeric", 63,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
);
name_id!(
    /// A configured manager's name.
    ManagerName, "a manager name", "1 to 63 of [A-Za-z0-9._-], the first alphanumeric", 63,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
);
name_id!(
    /// A host, as its manager calls it; unique within that manager.
    HostId, "a host", "1 to 253 of [A-Za-z0-9._:-], the first alphanumeric", 253,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':')
);
name_id!(
    /// A VM that Cellbus has not made, as its manager tells it from all others for as long as it lives.
    ForeignKey, "a key of a VM", "1 to 128 of [A-Za-z0-9._:-], the first alphanumeric", 128,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':')
);
name_id!(
    /// A cell: one incarnation of one. A cell that restarts takes a new id.
    CellId, "a cell id", "1 to 63 of [A-Za-z0-9._-], the first alphanumeric", 63,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
);
name_id!(
    /// An autoscaling controller: one incarnation of one. One that restarts takes a new id.
    ControllerId, "a controller id", "1 to 63 of [A-Za-z0-9._-], the first alphanumeric", 63,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
);
name_id!(
    /// A snapshot of a VM, or an affinity group: a short name inside its VM or tenant.
    ShortName, "a name", "1 to 63 of [A-Za-z0-9._-], the first alphanumeric", 63,
    |b| b.is_ascii_alphanumeric(),
    |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
);

/// How many shards the key space is cut into: fixed for the life of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct ShardCount(u16);

impl ShardCount {
    /// What a new cluster gets unless its operator says otherwise.
    pub const DEFAULT: Self = Self(256);
    /// The most shards that a cluster may have: each costs broker objects and an open log.
    pub const MAX: u16 = 4096;

    /// `None` unless `count` is between 1 and [`ShardCount::MAX`].
    #[must_use]
    pub fn new(count: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Self(count))
    }
    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
    /// Every shard, in order.
    pub fn shards(self) -> impl ExactSizeIterator<Item = ShardId> + Clone {
        (0..self.0).map(ShardId)
    }
}
impl TryFrom<u16> for ShardCount {
    type Error = InvalidId;
    fn try_from(count: u16) -> Result<Self, InvalidId> {
        Self::new(count).ok_or(InvalidId { what: "the number of shards", rule: "between 1 and 4096" })
    }
}
impl From<ShardCount> for u16 {
    fn from(count: ShardCount) -> Self {
        count.0
    }
}

/// One of the N fixed parts of the key space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(u16);

impl ShardId {
    /// First eight bytes, big endian, modulo N.
    #[must_use]
    pub fn of(uuid: Uuid, count: ShardCount) -> Self {
        let head = (uuid.as_u128() >> 64) as u64;
        // The remainder is below a u16, so the narrowing is exact.
        Self((head % u64::from(count.0)) as u16)
    }
    /// The shard of a key that is not a UUID (such as `"cluster"`): made a UUIDv5 first.
    #[must_use]
    pub fn of_key(key: &str, count: ShardCount) -> Self {
        Self::of(Uuid::new_v5(&NAMESPACE, &length_prefixed(&[key])), count)
    }
    /// The shard that holds what concerns the whole cluster.
    #[must_use]
    pub fn of_cluster(count: ShardCount) -> Self {
        Self::of_key("cluster", count)
    }
    /// `None` unless `index` is below `count`.
    #[must_use]
    pub fn new(index: u16, count: ShardCount) -> Option<Self> {
        (index < count.0).then_some(Self(index))
    }
    /// As a transport has stored it; N was checked when it was written.
    pub(crate) const fn stored(index: u16) -> Self {
        Self(index)
    }
    /// From 0 to N-1.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0
    }
}
impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardId({})", self.0)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self { Self(self.0 + 1) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

counter!(
    /// Which opening of a shard: 1 + that of the last `Opened` record in its log. It only grows.
    Epoch
);
counter!(
    /// A message's place in one queue or one log. The first message has 1; 0 means "nothing yet".
    Seq
);
counter!(
    /// Which autoscaling controller may decide: it grows with each that takes over.
    Term
);
counter!(
    /// The number of an operation on one VM, given by the VM's home shard. It only grows, and a
    /// manager's owner refuses a lower one.
    OpNumber
);

#[cfg(test)]
mod tests {
    use super::*;

    // The table of ops/docs/interface.md, "Ids".
    #[test]
    fn ids_follow_the_published_table() {
        let rows = [
            (
                "acme",
                "/portal/eu",
                "order-4711",
                "f44dec3f-0dad-599c-bfc4-bbe000698666",
                "adc63b71-dc4c-5693-9c97-b634b79e1950",
                156,
            ),
            ("a", "b", "c", "fc74a611-85e8-57b7-bef5-fddbc02c6525", "75a7a55f-75b9-5cb5-8765-0d0bd6dbc25c", 183),
            ("ab", "c", "c", "0e2021e4-d250-57fb-bb29-dd0381850912", "e02180f7-dacc-581f-9383-5793c4d4b2fb", 251),
            ("grün", "/ü", "№1", "6fb92976-bcae-5c4b-a2f2-5f25cc0ae39a", "6f17f04b-df9e-5825-a21a-8b91b96e9074", 75),
        ];
        for (tenant, source, event, job, vm1, shard) in rows {
            let id = JobId::derive(tenant, source, event);
            assert_eq!(id.to_string(), job);
            assert_eq!(id.vm(0).to_string(), job);
            assert_eq!(id.vm(1).to_string(), vm1);
            assert_eq!(id.shard(ShardCount::DEFAULT).index(), shard);
        }
        assert_eq!(ManagerId::derive("vc-eu-01").to_string(), "27235a8d-5052-5eef-86f1-51e4178d55a9");
        let adopted = VmId::adopted(ManagerId::derive("vc-eu-01"), &"vm-42".parse().unwrap());
        assert_eq!(adopted.to_string(), "58d41c3e-fb31-5dfc-962c-417ff8df5293");
        assert_eq!(NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"cellbus.io"));
    }

    #[test]
    fn names_keep_to_their_alphabet() {
        assert!("acme".parse::<TenantId>().is_ok());
        for bad in ["", "Acme", "a_b", "grün", &"a".repeat(64)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
        assert!("web-0.example_1".parse::<VmName>().is_ok());
        for bad in ["", "-web", "a b", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uuid_has_one_spelling() {
        assert!("f44dec3f-0dad-599c-bfc4-bbe000698666".parse::<VmId>().is_ok());
        assert!("f44dec3f0dad599cbfc4bbe000698666".parse::<VmId>().is_err());
        assert!("{f44dec3f-0dad-599c-bfc4-bbe00069866}".parse::<VmId>().is_err());
    }
}
