//! Who a container's process will be, in numbers: injected files are to belong to it.
//!
//! Read out of the container's own `/etc/passwd` and `/etc/group`, as the runtime does at start.

use std::io::Read;

use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use futures_util::stream::StreamExt;

use super::super::injected::Owner;
use super::super::{ContainerName, EngineError};
use super::{DockerEngine, QUESTION, errors};

/// The largest `/etc/passwd` that is read: a directory of ten thousand users has about 1 MiB.
const TABLE_BYTES_MAX: usize = 8 << 20;

/// The owner for a container's `User` (the step's, else the image's; empty means root).
pub(super) async fn find(engine: &DockerEngine, container: &ContainerName, user: &str) -> Result<Owner, EngineError> {
    if user.is_empty() {
        return Ok(Owner { uid: 0, gid: 0 });
    }
    let passwd = read(engine, container, "/etc/passwd").await?;
    let needs_groups = user.split_once(':').is_some_and(|(_, group)| group.parse::<u32>().is_err());
    let group = if needs_groups { read(engine, container, "/etc/group").await? } else { String::new() };
    resolve(user, &passwd, &group).map_err(|reason| EngineError::CannotStart { reason, exit: None })
}

/// `name`, `uid`, `name:group`, `uid:gid`. A number needs no entry; a name does.
fn resolve(user: &str, passwd: &str, groups: &str) -> Result<Owner, String> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let numeric = name.parse::<u32>().ok();
    let entry = table(passwd).find(|fields| match (fields.first(), fields.get(2)) {
        (Some(known), Some(uid)) => *known == name || numeric.is_some() && uid.parse().ok() == numeric,
        _ => false,
    });
    let of_entry = |index: usize| entry.as_ref().and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = of_entry(2).or(numeric).ok_or_else(|| format!("no user {name} in the image's /etc/passwd"))?;
    let gid = match group.filter(|group| !group.is_empty()) {
        None => of_entry(3).unwrap_or(0),
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => table(groups)
                .find(|fields| fields.first() == Some(&group))
                .and_then(|fields| fields.get(2)?.parse().ok())
                .ok_or_else(|| format!("no group {group} in the image's /etc/group"))?,
        },
    };
    Ok(Owner { uid: uid.into(), gid: gid.into() })
}

fn table(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.trim().split(':').collect())
}

/// A small file's text; an image without the file has an empty one.
async fn read(engine: &DockerEngine, container: &ContainerName, path: &str) -> Result<String, EngineError> {
    // `/.` behind it would be wrong for a file: a table that is a symlink is as good as absent, as it is to nobody.
    let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
    let mut chunks = engine.client().download_from_container(container.as_str(), Some(options));
    let call = async {
        let mut tar = Vec::new();
        while let Some(chunk) = chunks.next().await {
            tar.extend_from_slice(&chunk?);
            if tar.len() > TABLE_BYTES_MAX {
                break; // what is cut off is not found, and the start would say the same
            }
        }
        Ok(tar)
    };
    match engine.limited("read file", QUESTION, call).await {
        Ok(tar) => Ok(first_file(&tar)),
        Err(EngineError::Refused { status: 404, reason, .. }) if !reason.contains("No such container") => {
            Ok(String::new())
        }
        Err(error) => Err(errors::gone(error, container)),
    }
}

fn first_file(tar: &[u8]) -> String {
    let mut archive = tar::Archive::new(tar);
    let first = archive.entries().ok().and_then(|mut entries| entries.next()?.ok());
    let mut bytes = Vec::new();
    if let Some(mut entry) = first {
        // A cut-off table is read as far as it goes.
        let _ = entry.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n\n# nobody\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:me\n";

    fn owner(user: &str) -> Option<(u64, u64)> {
        resolve(user, PASSWD, GROUP).ok().map(|owner| (owner.uid, owner.gid))
    }

    #[test]
    fn users_are_read_as_the_runtime_reads_them() {
        assert_eq!(owner("root"), Some((0, 0)));
        assert_eq!(owner("me"), Some((1000, 1001)));
        assert_eq!(owner("1000"), Some((1000, 1001)));
        assert_eq!(owner("4711"), Some((4711, 0)));
        assert_eq!(owner("me:wheel"), Some((1000, 10)));
        assert_eq!(owner("4711:4712"), Some((4711, 4712)));
        assert_eq!(owner("nosuch"), None);
        assert_eq!(owner("me:nosuch"), None);
    }
}
