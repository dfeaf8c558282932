use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use longshore_coordinator::pipeline;

use super::*;

fn touch(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Name → (kind, content or link target, mode, mtime).
fn entries(packed: &mut Packed) -> BTreeMap<String, (EntryType, String, u32, u64)> {
    let mut archive = tar::Archive::new(&mut packed.file);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0), "{name}");
        let mut content = String::new();
        if header.entry_type() == EntryType::Symlink {
            content = entry.link_name().unwrap().unwrap().to_str().unwrap().to_owned();
        } else {
            entry.read_to_string(&mut content).unwrap();
        }
        found.insert(name, (header.entry_type(), content, header.mode().unwrap(), header.mtime().unwrap()));
    }
    found
}

#[test]
fn the_same_files_give_the_same_pack_in_whatever_order_they_were_made() {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_750);
    let make = |names: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            touch(&dir.path().join(name), name);
        }
        for name in names.iter().chain(&["sub"]) {
            File::open(dir.path().join(name)).unwrap().set_modified(time).unwrap();
        }
        dir
    };
    let (one, two) = (make(&["b", "a", "sub/c"]), make(&["sub/c", "a", "b"]));
    let (mut first, second) = (pack(one.path()).unwrap(), pack(two.path()).unwrap());
    assert_eq!(first.hash, second.hash);
    let found = entries(&mut first);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "sub", "sub/c"]);
    // Whole seconds: what an Engine keeps of them.
    assert_eq!(found["a"].3, 1_700_000_000);

    let changed = make(&["b", "a", "sub/c"]);
    fs::write(changed.path().join("a"), "A").unwrap();
    File::open(changed.path().join("a")).unwrap().set_modified(time).unwrap();
    assert_ne!(pack(changed.path()).unwrap().hash, first.hash);
}

#[test]
fn links_are_stored_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    touch(&outside.path().join("secret"), "not yours");
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join("file"), "mine");
    symlink("file", dir.path().join("inside")).unwrap();
    symlink(outside.path(), dir.path().join("tree")).unwrap();
    symlink("../../etc/passwd", dir.path().join("up")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    let found = entries(&mut pack(dir.path()).unwrap());
    assert_eq!(found.len(), 5, "{found:?}");
    let link = |name: &str| (found[name].0, found[name].1.as_str());
    assert_eq!(link("inside"), (EntryType::Symlink, "file"));
    assert_eq!(link("tree"), (EntryType::Symlink, outside.path().to_str().unwrap()));
    assert_eq!(link("up"), (EntryType::Symlink, "../../etc/passwd"));
    assert_eq!(link("dangling"), (EntryType::Symlink, "nowhere"));
    assert!(!found.values().any(|(_, content, ..)| content.contains("not yours")));
}

#[test]
fn only_longshores_own_ignore_file_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join(".gitignore"), "kept\n");
    touch(&dir.path().join(IGNORE_FILE), "*.o\n!keep.o\n/out/\n");
    for name in ["kept", "a.o", "keep.o", "out/x", "sub/b.o", "sub/out/y", ".hidden"] {
        touch(&dir.path().join(name), "");
    }
    let found = entries(&mut pack(dir.path()).unwrap());
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(names, [".gitignore", ".hidden", ".longshoreignore", "keep.o", "kept", "sub", "sub/out", "sub/out/y"]);
}

#[test]
fn two_thousand_files_with_long_names_and_modes_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: u32| format!("{}/{}/file-{n}", "long-directory-name-".repeat(8), n % 7);
    for n in 0..2_000 {
        touch(&dir.path().join(name(n)), &format!("content {n}"));
    }
    fs::set_permissions(dir.path().join(name(1)), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut packed = pack(dir.path()).unwrap();
    assert_eq!(packed.entries, 2_000 + 7 + 1);
    assert_eq!(packed.bytes, packed.file.metadata().unwrap().len());
    let mut all = Vec::new();
    packed.file.read_to_end(&mut all).unwrap();
    assert_eq!(BlobHash::of(&all), packed.hash);
    packed.file.seek(SeekFrom::Start(0)).unwrap();
    let found = entries(&mut packed);
    for n in 0..2_000 {
        assert_eq!(found[&name(n)].1, format!("content {n}"));
    }
    assert_eq!(found[&name(1)].2, 0o4755);
}

#[test]
fn sockets_and_pipes_are_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join("file"), "");
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut packed = pack(dir.path()).unwrap();
    assert_eq!(packed.skipped, [PathBuf::from("socket")]);
    assert_eq!(entries(&mut packed).len(), 1);
}

#[test]
fn a_file_that_shrinks_is_told_from_one_that_is_whole() {
    let mut short = Exactly { reader: &b"abc"[..], left: 4 };
    assert_eq!(io::copy(&mut short, &mut io::sink()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let mut grown = Exactly { reader: &b"abcde"[..], left: 3 };
    assert_eq!(io::copy(&mut grown, &mut io::sink()).unwrap(), 3);
}

#[test]
fn a_directory_that_several_steps_name_is_packed_once() {
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join("src/main.c"), "int main;");
    let text = "
name: p
steps:
  - name: a
    image: i
    run: 'true'
    sources: [{path: ./src, target: /src}]
  - name: b
    image: i
    run: 'true'
    sources: [{path: src/../src, target: /other}]
";
    let mut pipeline = pipeline::parse("p.yaml", text).unwrap();
    let sources = Sources::pack(&mut pipeline, dir.path()).unwrap();
    assert_eq!(sources.iter().count(), 1);
    assert!(pipeline.steps[0].sources[0].blob.is_some());
    assert_eq!(pipeline.steps[0].sources[0].blob, pipeline.steps[1].sources[0].blob);

    let mut elsewhere = pipeline::parse("p.yaml", text).unwrap();
    let error = Sources::pack(&mut elsewhere, &dir.path().join("src")).unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
}
