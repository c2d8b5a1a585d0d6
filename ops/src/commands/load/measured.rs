//! What the harness itself runs on, and what it uses (`proc(5)`). What the system does not say is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use cellbus_simulator::load::Usage;

/// The kernel counts processor time for user space in hundredths of a second, on every architecture.
const TICKS_A_SECOND: u64 = 100;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What this process has used until now.
pub(in crate::commands) fn usage() -> Usage {
    Usage { cpu: cpu(&read("/proc/self/stat")), rss_mib: resident_mib(&read("/proc/self/status")) }
}

fn cpu(stat: &str) -> Duration {
    // The second field is the program's name in parentheses, which may hold anything: from the last one on.
    let ticks = |fields: &str| {
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        Some(fields.next()?.ok()? + fields.next()?.ok()?)
    };
    let ticks = stat.rsplit_once(')').and_then(|(_, fields)| ticks(fields)).unwrap_or_default();
    Duration::from_millis(ticks * (1_000 / TICKS_A_SECOND))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':')).map(str::trim)
}

fn kib(text: &str, name: &str) -> Option<f64> {
    field(text, name)?.split_whitespace().next()?.parse().ok()
}

fn resident_mib(status: &str) -> f64 {
    kib(status, "VmRSS").unwrap_or_default() / 1_024.0
}

/// The machine, in words.
pub(super) fn machine() -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map(|cores| cores.to_string()).ok();
    let memory = kib(&read("/proc/meminfo"), "MemTotal").map(|kib| format!("{:.1} GiB", kib / 1_048_576.0));
    let named = [
        ("processor", field(&read("/proc/cpuinfo"), "model name").map(str::to_owned)),
        ("cores", cores),
        ("memory", memory),
        ("system", Some(format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim()))),
        ("architecture", Some(std::env::consts::ARCH.to_owned())),
    ];
    named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let stat = "4711 (cell) bus (x) S 1 1 1 0 -1 4194560 3 0 0 0 150 50 0 0 20 0 5 0 100 1 2";
        assert_eq!(cpu(stat), Duration::from_secs(2));
        assert_eq!(cpu("nonsense"), Duration::ZERO);
        assert_eq!(resident_mib("Name:\tx\nVmRSS:\t    2048 kB\n"), 2.0);
        assert_eq!(field("processor\t: 0\nmodel name\t: Fast\n", "model name"), Some("Fast"));
        assert!(usage().rss_mib > 0.0);
    }
}
