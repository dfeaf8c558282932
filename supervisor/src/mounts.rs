//! The container's mounts, as `/proc/self/mountinfo` lists them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which part of its file system is mounted; `/` is all of it.
    pub(crate) root: PathBuf,
    pub(crate) at: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) kind: String,
    /// Of the file system: for a cgroup of version 1 its controllers.
    pub(crate) options: String,
}

/// All of them; none where there is no proc.
pub(crate) fn read() -> Vec<Mount> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// `id parent major:minor root at options optional* - kind source options`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = path(fields.nth(3)?);
    let at = path(fields.next()?);
    let options = text(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = text(rest.next()?);
    let of_system = text(rest.nth(1)?);
    let read_only = [&options, &of_system].iter().any(|options| options.split(',').any(|option| option == "ro"));
    Some(Mount { root, at, read_only, kind, options: of_system })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Blanks and the like are written as `\040`.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let byte = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether something is mounted just there.
pub(crate) fn is_mount_point(mounts: &[Mount], path: &Path) -> bool {
    mounts.iter().any(|mount| mount.at == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134 rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.root, mount.at), (PathBuf::from("/mnt1"), PathBuf::from("/a b\\")));
        assert_eq!((mount.kind.as_str(), mount.read_only), ("ext3", true));
        let line = b"1 2 0:5 / /dev rw - tmpfs tmpfs rw,size=65536k";
        assert!(!parse(line).unwrap().read_only);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 0:5 / /dev rw - tmpfs"), None);
    }
}
