//! System V shared memory, message queues and semaphores.

use std::fs;

use crate::sys::{self, IpcKind};

const TABLES: [(IpcKind, &str, &str); 3] = [
    (IpcKind::SharedMemory, "/proc/sysvipc/shm", "shmid"),
    (IpcKind::MessageQueue, "/proc/sysvipc/msg", "msqid"),
    (IpcKind::Semaphores, "/proc/sysvipc/sem", "semid"),
];

/// Every object of the container's own namespace.
pub(super) fn remove_all() -> Result<(), String> {
    for (kind, path, id_column) in TABLES {
        // A kernel without them has no table.
        let Ok(table) = fs::read_to_string(path) else { continue };
        for (id, owner) in objects(&table, id_column) {
            sys::remove_ipc(kind, id, owner).map_err(|error| format!("{kind:?} {id} of user {owner}: {error}"))?;
        }
        let left = fs::read_to_string(path).unwrap_or_default();
        if let Some((id, owner)) = objects(&left, id_column).first() {
            return Err(format!("{kind:?} {id} of user {owner} stays"));
        }
    }
    Ok(())
}

/// Id and owner of each line, by the names of the columns, which differ between the three.
fn objects(table: &str, id_column: &str) -> Vec<(i32, u32)> {
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = |name: &str| names.iter().position(|known| *known == name);
    let (Some(id), Some(owner)) = (column(id_column), column("uid")) else { return Vec::new() };
    let object = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields.get(id)?.parse().ok()?, fields.get(owner)?.parse().ok()?))
    };
    lines.filter_map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_by_their_columns() {
        let table = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                     \x20   1234          7   644          1    12    13     0     0          0          0\n";
        assert_eq!(objects(table, "semid"), [(7, 12)]);
        assert!(objects(table, "shmid").is_empty() && objects("", "semid").is_empty());
    }
}
