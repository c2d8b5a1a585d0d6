//! Which managers there are and which hosts they have: made by size, or read from a CSV.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use cellbus_bus::ids::{HostId, ManagerId, ManagerName};
use cellbus_bus::job::Labels;

use crate::table::{self, Table};

/// More hosts than any fleet has.
const HOSTS_MAX: u64 = 1_000_000;
/// More managers than any fleet has.
const MANAGERS_MAX: u64 = 100_000;

/// What a generated host has.
const HOST_VCPUS: u32 = 64;
const HOST_MEMORY_MIB: u64 = 512 * 1024;
const HOST_DISK_GIB: u64 = 10 * 1024;
/// The gear classes of generated hosts, in turn.
const GEARS: [&str; 3] = ["g1", "g2", "g3"];
/// The disk of a host whose row does not say, GiB.
const CSV_DISK_GIB: u64 = 16 * 1024;

/// Managers with their hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// In the order of their names' numbers. None is empty, and no two hosts share a name.
    pub managers: Vec<ManagerSpec>,
}

/// One manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerSpec {
    /// Its configured name, from which its id follows.
    pub name: ManagerName,
    /// Its hosts.
    pub hosts: Vec<HostSpec>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name.
    pub id: HostId,
    /// Physical CPUs (threads).
    pub vcpus: u32,
    /// MiB.
    pub memory_mib: u64,
    /// GiB.
    pub disk_gib: u64,
    /// The datastore that its disk is part of, with those of all other hosts that name it; `None`: it is its own.
    pub datastore: Option<Arc<str>>,
    /// `gear`, where it is known. Shared by all hosts of one class.
    pub labels: Arc<Labels>,
}

/// Why there is no such inventory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number of hosts or managers that makes no sense.
    #[error("{what} must be from {min} to {max}, and is {asked}")]
    Size {
        /// Of what.
        what: &'static str,
        /// At least.
        min: u64,
        /// At most.
        max: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The file is not such a CSV.
    #[error(transparent)]
    Csv(#[from] table::Error),
    /// It has a header and no rows.
    #[error("the file names no hosts")]
    Empty,
}

impl Error {
    /// The same numbers and the same file give the same error.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

impl ManagerSpec {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ManagerId {
        ManagerId::derive(self.name.as_str())
    }

    /// So many hosts, one after the other, share a datastore from now on, which has the disk of all of them.
    pub fn share(&mut self, hosts: u32) {
        for (number, hosts) in self.hosts.chunks_mut(hosts.max(1) as usize).enumerate() {
            let name: Arc<str> = format!("{}-ds{number:03}", self.name).into();
            hosts.iter_mut().for_each(|host| host.datastore = Some(Arc::clone(&name)));
        }
    }
}

impl Inventory {
    /// `hosts` hosts of 64 vCPUs, 512 GiB and 10 TiB, in gear classes g1, g2 and g3 in turn, laid
    /// over managers `sim-0000`, `sim-0001`, ... as evenly as it goes.
    ///
    /// # Errors
    /// [`Error::Size`]; no manager may be left without a host.
    pub fn generate(hosts: u64, managers: u64) -> Result<Self, Error> {
        bounded("the number of hosts", hosts, HOSTS_MAX)?;
        bounded("the number of managers", managers, MANAGERS_MAX.min(hosts))?;
        let gears = GEARS.map(gear);
        let mut made = Self::unnamed(managers);
        for index in 0..hosts {
            // Both numbers are bounded by HOSTS_MAX, far below a usize.
            let manager = &mut made.managers[(index % managers) as usize];
            let of_manager = manager.hosts.len();
            manager.hosts.push(HostSpec {
                id: format!("{}-h{of_manager:04}", manager.name)
                    .parse()
                    .expect("a manager's name and a number make a host's name"),
                vcpus: HOST_VCPUS,
                memory_mib: HOST_MEMORY_MIB,
                disk_gib: HOST_DISK_GIB,
                datastore: None,
                labels: Arc::clone(&gears[of_manager % GEARS.len()]),
            });
        }
        Ok(made)
    }

    /// From a CSV with a header, its hosts dealt out to `managers` managers in turn. Columns, by
    /// name: `name` or `sn`; `cpu_milli` (thousandths of a CPU, rounded down to whole ones);
    /// `memory_mib`; optionally `disk_gib` (16 TiB) and `model` (the gear). Others are ignored.
    /// With fewer hosts than managers there are as many managers as hosts.
    ///
    /// # Errors
    /// What is wrong with the file, with its line and column, or [`Error::Size`].
    pub fn from_csv(file: impl io::Read, managers: u64) -> Result<Self, Error> {
        bounded("the number of managers", managers, MANAGERS_MAX)?;
        let hosts = hosts_of(file)?;
        let mut made = Self::unnamed(managers.min(hosts.len() as u64));
        let count = made.managers.len();
        for (index, host) in hosts.into_iter().enumerate() {
            made.managers[index % count].hosts.push(host);
        }
        Ok(made)
    }

    /// How many hosts there are.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.managers.iter().map(|manager| manager.hosts.len()).sum()
    }

    fn unnamed(managers: u64) -> Self {
        let managers = (0..managers)
            .map(|index| ManagerSpec {
                name: format!("sim-{index:04}").parse().expect("a short word and a number make a manager's name"),
                hosts: Vec::new(),
            })
            .collect();
        Self { managers }
    }
}

fn bounded(what: &'static str, asked: u64, max: u64) -> Result<(), Error> {
    if (1..=max).contains(&asked) { Ok(()) } else { Err(Error::Size { what, min: 1, max, asked }) }
}

fn gear(class: &str) -> Arc<Labels> {
    Arc::new(Labels::from([("gear".to_owned(), class.to_owned())]))
}

fn hosts_of(file: impl io::Read) -> Result<Vec<HostSpec>, Error> {
    let mut table = Table::open(file)?;
    let name = table.need(&["name", "sn"])?;
    let cpu_milli = table.need(&["cpu_milli"])?;
    let memory_mib = table.need(&["memory_mib"])?;
    let (disk_gib, model) = (table.find(&["disk_gib"]), table.find(&["model"]));

    let mut hosts = Vec::new();
    let mut seen: BTreeMap<HostId, u64> = BTreeMap::new();
    let mut classes: BTreeMap<String, Arc<Labels>> = BTreeMap::new();
    while table.advance()? {
        if hosts.len() as u64 == HOSTS_MAX {
            return Err(table::Error::TooMany { line: table.line(), max: HOSTS_MAX, what: "hosts" }.into());
        }
        let id: HostId =
            table.parse(name, "a host name: 1 to 253 of [A-Za-z0-9._:-], the first alphanumeric", |text| {
                text.parse().ok()
            })?;
        if let Some(line) = seen.insert(id.clone(), table.line()) {
            return Err(table.refuse(format!("the host {id} is in line {line} already")).into());
        }
        let labels = match model.map(|column| table.text(column)) {
            None | Some("") => Arc::default(),
            Some(class) if class.chars().count() <= 255 && !class.chars().any(char::is_control) => {
                Arc::clone(classes.entry(class.to_owned()).or_insert_with_key(|class| gear(class)))
            }
            Some(_) => {
                return Err(table
                    .refuse("the model is longer than 255 characters or has control characters in it")
                    .into());
            }
        };
        hosts.push(HostSpec {
            id,
            // At least one CPU and at most a million of them, so the quotient fits a u32.
            vcpus: (table.whole(cpu_milli, 1_000..=1_000_000_000)? / 1_000) as u32,
            memory_mib: table.whole(memory_mib, 1..=1 << 40)?,
            disk_gib: match disk_gib {
                Some(column) if !table.text(column).is_empty() => table.whole(column, 1..=1 << 40)?,
                Some(_) | None => CSV_DISK_GIB,
            },
            datastore: None,
            labels,
        });
    }
    if hosts.is_empty() { Err(Error::Empty) } else { Ok(hosts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(text: &str, managers: u64) -> Result<Inventory, String> {
        Inventory::from_csv(text.as_bytes(), managers).map_err(|error| error.to_string())
    }

    #[test]
    fn hosts_are_made_by_size() {
        let made = Inventory::generate(50_000, 500).unwrap();
        assert_eq!((made.managers.len(), made.hosts()), (500, 50_000));
        assert_eq!(made.managers[7].name.as_str(), "sim-0007");
        let host = &made.managers[7].hosts[42];
        assert_eq!(
            (host.id.as_str(), host.vcpus, host.memory_mib, host.disk_gib),
            ("sim-0007-h0042", 64, 524_288, 10_240)
        );
        for class in GEARS {
            let of_class = made.managers[3].hosts.iter().filter(|host| host.labels["gear"] == class).count();
            assert!((33..=34).contains(&of_class), "{class}: {of_class} of 100");
        }
        let uneven = Inventory::generate(10, 3).unwrap();
        assert_eq!(uneven.managers.iter().map(|m| m.hosts.len()).collect::<Vec<_>>(), [4, 3, 3]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (hosts, managers) in [(0, 1), (1, 0), (3, 4), (u64::MAX, 1), (10, u64::MAX)] {
            assert!(matches!(Inventory::generate(hosts, managers), Err(Error::Size { .. })), "{hosts} {managers}");
        }
    }

    #[test]
    fn hosts_are_read_from_a_csv() {
        let made =
            csv("sn,memory_mib,rack,cpu_milli,model\nn1,1024,r1,32500,V100\nn2,2048,r1,64000,\nn3,1,r2,1000,V100\n", 2)
                .unwrap();
        let [first, second] = &made.managers[..] else { panic!("{made:?}") };
        assert_eq!(first.hosts.iter().map(|h| h.id.as_str()).collect::<Vec<_>>(), ["n1", "n3"]);
        let n1 = &first.hosts[0];
        assert_eq!((n1.vcpus, n1.memory_mib, n1.disk_gib, n1.labels["gear"].as_str()), (32, 1024, 16_384, "V100"));
        assert!(second.hosts[0].labels.is_empty());
        assert_eq!(csv("name,cpu_milli,memory_mib,disk_gib\na,1000,1,7\n", 8).unwrap().managers.len(), 1);
    }

    #[test]
    fn errors_say_where() {
        let head = "name,cpu_milli,memory_mib\n";
        let cases = [
            ("", "no column name or sn"),
            ("name,cpu_milli\na,1\n", "no column memory_mib; the header has name, cpu_milli"),
            (head, "names no hosts"),
            (&format!("{head}a,1000,1\nb,x,1\n"), "line 3, column cpu_milli: \"x\" is not a whole number"),
            (&format!("{head}a,1000,-1\n"), "line 2, column memory_mib"),
            (&format!("{head}a,999,1\n"), "from 1000 to"),
            (&format!("{head}a,1000,1\na,1000,1\n"), "line 3: the host a is in line 2 already"),
            (&format!("{head}a b,1000,1\n"), "line 2, column name"),
            (&format!("{head}{},1000,1\n", "a".repeat(5000)), "line 2, column name"),
            (&format!("{head}a,1000\n"), "cannot be read as CSV"),
        ];
        for (text, expected) in cases {
            let error = csv(text, 8).unwrap_err();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
            assert!(error.len() < 400, "an error does not repeat the file");
        }
        assert!(csv(&format!("{head}a,1000,1\n"), 0).is_err());
    }
}
