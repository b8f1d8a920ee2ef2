//! What the kernel knows of the process, and what is reserved of its memory. Where there is no `/proc`, what comes from
//! there is absent.

use std::fmt::{self, Write as _};
use std::fs;

use crate::context::Memory;
use crate::metrics::{Kind, write_head};

/// Ticks a second in `/proc/self/stat`: the kernel promises programs 100, whatever it uses itself.
const TICKS: u64 = 100;

/// Adds the metrics of the process to a page.
pub(super) fn encode(out: &mut String, memory: &Memory) {
    let build = format_args!("{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    family(out, "headworks_build_info", "The version of the program.", Kind::Gauge, build);
    let help = "Bytes that connections and requests may hold.";
    family(out, "headworks_memory_reserved_bytes", help, Kind::Gauge, format_args!(" {}", memory.reserved()));
    let help = "Bytes that they may hold together.";
    family(out, "headworks_memory_limit_bytes", help, Kind::Gauge, format_args!(" {}", memory.limit()));
    if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes) {
        let help = "Memory that the process holds.";
        family(out, "headworks_process_resident_memory_bytes", help, Kind::Gauge, format_args!(" {bytes}"));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // Less the one by which they are counted.
        let count = open.count().saturating_sub(1);
        family(out, "headworks_process_open_fds", "Open descriptors.", Kind::Gauge, format_args!(" {count}"));
    }
    if let Some(ticks) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_ticks) {
        let help = "Processor time that the process used.";
        let value = format_args!(" {}.{:02}", ticks / TICKS, ticks % TICKS);
        family(out, "headworks_process_cpu_seconds_total", help, Kind::Counter, value);
    }
}

fn family(out: &mut String, name: &str, help: &str, kind: Kind, sample: fmt::Arguments<'_>) {
    write_head(out, name, help, kind);
    let _ = writeln!(out, "{name}{sample}");
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// User and system time: the 14th and 15th field, after a name that may itself hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::name_fault;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1_263_616));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0\n";
        assert_eq!(cpu_ticks(stat), Some(175));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn names_keep_the_rules() {
        let mut page = String::new();
        encode(&mut page, &Memory::default());
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let mut count = 0;
        for (name, kind) in types {
            let kind = if kind == "counter" { Kind::Counter } else { Kind::Gauge };
            assert_eq!(name_fault(name, "", kind), None, "{name}");
            count += 1;
        }
        assert_eq!(count, 6);
    }
}
