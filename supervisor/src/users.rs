//! Who a command runs as, by the container's own tables.
//!
//! Read by hand: a static program that asks the C library for a name would load the image's modules for it.
//! The rules are Docker's (moby `user.GetExecUser`).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// The largest table that is read: ten thousand users are about 1 MiB.
const TABLE_BYTES_MAX: u64 = 8 << 20;

/// In numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All of them, the first one included.
    pub(crate) groups: Vec<u32>,
    /// From passwd; `/` for somebody who is not in it.
    pub(crate) home: String,
}

/// `name|uid[:group|gid]`; empty is root. A number needs no entry, a name does.
pub(crate) fn find(user: &str) -> Result<Identity, String> {
    resolve(user, &read("/etc/passwd"), &read("/etc/group"))
}

/// An image without the file has an empty one. What an earlier step put there instead of a file is not waited for.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    if let Ok(file) = opened.and_then(regular) {
        // A table that cannot be read to its end is read as far as it goes.
        let _ = file.take(TABLE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn regular(file: File) -> std::io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, group_name) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| i32::try_from(*id).is_ok());
    let is = |text: &str, id: &str| number(text).is_some() && number(text) == number(id);
    let entry = table(passwd).find(|fields| match fields[..] {
        [known, _, uid, ..] => known == name || is(name, uid),
        _ => false,
    });
    let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at).copied());
    let uid = field(2).and_then(number).or(number(name));
    let uid = uid.ok_or_else(|| format!("no user {name} in the container's /etc/passwd"))?;
    let mut identity = Identity {
        uid,
        gid: field(3).and_then(number).unwrap_or(0),
        groups: Vec::new(),
        home: field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned(),
    };
    if group_name.is_empty() {
        // Docker gives the further groups only where the first one was not chosen.
        let known = field(0).unwrap_or_default();
        identity.groups = table(group)
            .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == known)))
            .filter_map(|fields| fields.get(2).copied().and_then(number))
            .filter(|_| !known.is_empty())
            .collect();
    } else {
        let named = table(group).find(|fields| match fields[..] {
            [known, _, gid, ..] => known == group_name || is(group_name, gid),
            _ => false,
        });
        let gid = named.and_then(|fields| number(fields[2])).or(number(group_name));
        identity.gid = gid.ok_or_else(|| format!("no group {group_name} in the container's /etc/group"))?;
    }
    identity.groups.retain(|gid| *gid != identity.gid);
    identity.groups.insert(0, identity.gid);
    identity.groups.dedup();
    Ok(identity)
}

fn table(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.trim().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n\n# nobody\n7:x:9:9:::\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:me,you\nme:x:1001:\nvideo:x:44:you,me\n12:x:13:\n";

    fn who(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(who(""), (0, 0, vec![0], "/root".into()));
        assert_eq!(who("root"), (0, 0, vec![0], "/root".into()));
        assert_eq!(who("me"), (1000, 1001, vec![1001, 10, 44], "/home/me".into()));
        assert_eq!(who("1000"), (1000, 1001, vec![1001, 10, 44], "/home/me".into()));
        assert_eq!(who("4711"), (4711, 0, vec![0], "/".into()));
        assert_eq!(who("me:wheel"), (1000, 10, vec![10], "/home/me".into()));
        assert_eq!(who("me:44"), (1000, 44, vec![44], "/home/me".into()));
        assert_eq!(who("4711:4712"), (4711, 4712, vec![4712], "/".into()));
        assert_eq!(who(":wheel"), (0, 10, vec![10], "/root".into()));
        // A name that is a number comes before the number, as there.
        assert_eq!(who("7"), (9, 9, vec![9], "/".into()));
        assert_eq!(who("0:12"), (0, 13, vec![13], "/root".into()));
    }

    #[test]
    fn whoever_is_not_there_is_told() {
        for user in ["nosuch", "me:nosuch", "-1", "4294967295", "99999999999"] {
            assert!(resolve(user, PASSWD, GROUP).is_err(), "{user}");
        }
        assert!(resolve("root", "", "").is_err());
        assert_eq!(resolve("0", "", "").unwrap().home, "/");
    }
}
