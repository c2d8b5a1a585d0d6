//! The memory of this process, as the kernel counts it (`proc(5)`, `/proc/self/status`).

/// Resident bytes now and at their peak; `None` where the kernel does not say.
pub(super) fn resident() -> Option<(i64, i64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((bytes(&status, "VmRSS:")?, bytes(&status, "VmHWM:")?))
}

fn bytes(status: &str, field: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_in_kib() {
        let status = "Name:\tcellbus\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(bytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(bytes(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(bytes(status, "VmSwap:"), None);
    }
}
