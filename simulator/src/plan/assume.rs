//! What a plan takes for given. Each figure was measured where its line says, on two shared cores, or
//! is called a guess; every one of them can be set to what another machine shows.

use std::str::FromStr;

use serde::Serialize;

/// A transport, with its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// In the process itself.
    Embedded,
    /// One NATS server.
    Nats,
    /// Three NATS servers that flush each write.
    #[serde(rename = "nats-3")]
    Nats3,
}

impl Bus {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Embedded, Self::Nats, Self::Nats3];
    /// As on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Nats => "nats",
            Self::Nats3 => "nats-3",
        }
    }
}

impl FromStr for Bus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|bus| bus.as_str() == text).ok_or_else(|| format!("one of {}", known()))
    }
}

/// There is no such assumption, or its value is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownAssumption {
    /// No such name.
    #[error("there is no assumption {name:?}; they are {known}")]
    Name {
        /// As it was written.
        name: String,
        /// All that there are.
        known: String,
    },
    /// Not a number above zero.
    #[error("{name}={value}: a number above 0 and below 1e15")]
    Value {
        /// Of which.
        name: String,
        /// As it was written.
        value: String,
    },
}

macro_rules! assumptions {
    ($($(#[doc = $doc:literal])+ $name:ident: $default:expr,)+) => {
        /// What a plan takes for given; units are in the names.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct Assumptions {
            /// The transport.
            pub bus: Bus,
            /// Hosts that one manager takes.
            pub hosts_per_manager: u64,
            $($(#[doc = $doc])+ pub $name: f64,)+
        }

        impl Assumptions {
            fn base(bus: Bus) -> Self {
                Self { bus, hosts_per_manager: 1_000, $($name: $default,)+ }
            }

            /// Sets one, by its name: `job_cpu_us=60`.
            ///
            /// # Errors
            /// When there is none of that name, or the value is no number above zero.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), UnknownAssumption> {
                let number = value.parse().ok().filter(|number: &f64| *number > 0.0 && *number < 1e15);
                let number = number.ok_or_else(|| UnknownAssumption::Value {
                    name: name.chars().take(64).collect(), value: value.chars().take(64).collect(),
                })?;
                match name {
                    // Below 1e15, which a u64 holds.
                    "hosts_per_manager" => self.hosts_per_manager = (number as u64).max(1),
                    $(stringify!($name) => self.$name = number,)+
                    _ => return Err(UnknownAssumption::Name {
                        name: name.chars().take(64).collect(),
                        known: ["hosts_per_manager", $(stringify!($name)),+].join(", "),
                    }),
                }
                Ok(())
            }

            /// Each by name, with its value and where it comes from.
            #[must_use]
            pub fn each(&self) -> Vec<(&'static str, f64, &'static str)> {
                let hosts = ("hosts_per_manager", self.hosts_per_manager as f64, "a vCenter ends at 2,500");
                let mut all = vec![hosts];
                $(all.push((stringify!($name), self.$name, concat!($($doc),+).trim()));)+
                all
            }
        }
    };
}

assumptions! {
    /// Operations that a manager has under way at once (the default limit of a simulated one).
    operations_per_manager: 256.0,
    /// Processors of a cell (a choice).
    cell_cores: 4.0,
    /// Memory of a cell, MiB (a choice).
    cell_memory_mib: 16_384.0,
    /// Memory that a cell or a replica takes with nothing in it, MiB (a guess).
    cell_base_mib: 200.0,
    /// Share of processors, memory and bus that is meant to be used (a choice).
    utilisation: 0.7,
    /// CPU of a job from submission to outcome, microseconds, bus and directory included (bench `provision`: 44 to 60 with much in flight).
    job_cpu_us: 46.0,
    /// Memory of a VM and of the job that made it in its shard, bytes (bench `shard`).
    vm_bytes: 2_400.0,
    /// Memory of a job that has ended in its shard, bytes (a guess: half of a VM with its job).
    job_bytes: 1_200.0,
    /// Jobs a VM has in a day (a guess).
    jobs_per_vm_and_day: 0.5,
    /// Days that ended jobs are listed (`jobs.retention`).
    job_retention_days: 7.0,
    /// VMs of a shard, at the most, for it to be opened within about a second.
    vms_per_shard_max: 150_000.0,
    /// CPU to read a VM from a shard's snapshot, microseconds (bench `shard`).
    restore_us: 4.9,
    /// CPU to replay a job from a shard's log, microseconds (bench `shard`).
    replay_us: 5.9,
    /// Bytes of a VM and its job in a snapshot (bench `shard`).
    snapshot_bytes: 545.0,
    /// Bytes of a job in its shard's log (bench `shard`).
    log_bytes: 321.0,
    /// Processors of a replica of the directory (a choice).
    replica_cores: 4.0,
    /// CPU to fold a job into the directory, microseconds, with millions of VMs there (bench `directory`).
    fold_us: 12.0,
    /// Memory of a VM in the directory, bytes: places, lists, row and name (bench `directory`).
    row_bytes: 205.0,
    /// Memory of an ended job in the directory, bytes (a guess).
    listed_job_bytes: 300.0,
    /// Microseconds to serve a VM from the checkpoint (bench `directory`, 5,000,000 VMs).
    checkpoint_us: 0.76,
    /// Look-ups for each job (a guess).
    lookups_per_job: 10.0,
    /// Look-ups that a replica answers over HTTP (bench `locate`).
    lookups_per_second: 75_000.0,
    /// Jobs a second that the bus carries (embedded: bench `provision`; NATS: the prototype in ops/docs/design.md; nats-3: a third of it).
    bus_jobs_per_second: 40_000.0,
    /// Messages of a job at the bus: ingress, queue, event and two appends, none of them shared (the embedded bus needed 2.1).
    bus_messages_per_job: 5.0,
    /// Bytes of a job at the bus: ingress, queue, log and event (a guess: five messages of 512 bytes).
    bus_bytes_per_job: 2_500.0,
    /// Copies that the bus keeps.
    bus_replicas: 1.0,
    /// What the bus reads back, MiB a second (a guess).
    bus_read_mib: 100.0,
    /// The lease of a cell, seconds (the default; 12 for three servers, whose elections take 4 to 9).
    lease_seconds: 3.0,
}

impl Assumptions {
    /// As measured, for this transport. The figures of NATS are those of the prototype in
    /// ops/docs/design.md, "The bus".
    #[must_use]
    pub fn of(bus: Bus) -> Self {
        let base = Self::base(bus);
        match bus {
            Bus::Embedded => base,
            Bus::Nats => Self { bus_jobs_per_second: 28_000.0, ..base },
            Bus::Nats3 => Self { bus_jobs_per_second: 9_300.0, bus_replicas: 3.0, lease_seconds: 12.0, ..base },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_can_be_set_by_the_name_it_is_shown_under() {
        let mut assumed = Assumptions::of(Bus::Nats);
        for (name, ..) in Assumptions::of(Bus::Nats).each() {
            assumed.set(name, "7").expect("a name that is shown");
        }
        assert!(assumed.each().iter().all(|(_, value, _)| *value == 7.0));
        assert!(matches!(assumed.set("job_cpu", "7"), Err(UnknownAssumption::Name { .. })));
        for bad in ["", "-1", "0", "NaN", "inf", "1e99", "seven"] {
            assert!(matches!(assumed.set("job_cpu_us", bad), Err(UnknownAssumption::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn a_bus_is_named_as_it_is_shown() {
        for bus in Bus::ALL {
            assert_eq!(bus.as_str().parse(), Ok(bus));
            assert_eq!(serde_json::to_value(bus).unwrap(), bus.as_str());
        }
        assert!("kafka-7".parse::<Bus>().is_err());
    }
}
