//! What the kernel knows of processes: memory and processor time.

use std::collections::BTreeMap;
use std::fs;

use crate::failure::{Failure, Result};

/// Of a process's memory, in MiB.
const KIB_PER_MIB: f64 = 1024.0;

/// `USER_HZ`: 100 on every architecture that Linux has today.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is resident now, in MiB.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    status(pid, "VmRSS")
}

/// The most that was ever resident since [`forget_peak`], in MiB. The kernel's own mark: nothing is missed between
/// two looks.
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    status(pid, "VmHWM")
}

/// Sets the mark back to what is resident now.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    // 5: see proc(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").map_err(|e| Failure::from(e).during("setting a peak back"))
}

fn status(pid: u32, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| Failure::from(e).during(key))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib / KIB_PER_MIB).ok_or_else(|| Failure::new(format!("process {pid} has no {key}")))
}

/// What a process and its children have resident, in MiB; pages that several of them share are counted once.
pub(crate) fn resident_of_tree_mib(pid: u32) -> Result<f64> {
    let mut all = 0.0;
    for pid in tree(pid) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let value = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
        all += value.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / KIB_PER_MIB;
    }
    Ok(all)
}

fn tree(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(tree).collect::<Vec<_>>()).collect()
}

/// Seconds of processor time so far of every process there is, by number and time of birth: a number comes again.
pub(crate) fn cpu_seconds() -> BTreeMap<(u32, u64), (String, f64)> {
    let mut all = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return all };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The command may hold anything, but the last bracket is its end.
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<u64> = tail.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        // See proc(5): utime is the 14th, starttime the 22nd, and two stand before the bracket's end.
        let (Some(times), Some(birth)) = (fields.get(11..13), fields.get(19)) else { continue };
        let command = head.split_once('(').map_or("", |(_, command)| command);
        // The kernel's workers are called after what they did last.
        let command = if command.starts_with("kworker") { "kworker" } else { command };
        let seconds = times.iter().sum::<u64>() as f64 / TICKS_PER_SECOND;
        all.insert((pid, *birth), (command.to_owned(), seconds));
    }
    all
}

/// Seconds that all processors together were busy so far.
pub(crate) fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = all.map(|field| field.parse().unwrap_or(0)).collect();
    // See proc(5): user, nice, system, then idle and iowait, then irq and softirq.
    let busy = ticks.iter().take(3).chain(ticks.iter().skip(5).take(2)).sum::<u64>();
    busy as f64 / TICKS_PER_SECOND
}
