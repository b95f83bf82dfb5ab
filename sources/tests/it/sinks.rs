//! Objects that are written back: the checks of every sink, and files that are replaced by renaming.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use pager::{BlockSink, BlockSource, Pager, SinkError, SourceError, Version, Writing};
use sources::{Local, LocalSink, Memory, conformance::check_sink};

use crate::servers::sample;

/// More than one piece, and no multiple of anything.
const LEN: usize = (3 << 20) + 12_345;

#[tokio::test]
async fn memory() {
    for len in [1, 4096, 100_001, LEN] {
        let bytes = sample(len);
        let memory = Memory::new("x", bytes.clone());
        check_sink(memory.clone(), memory, &bytes).await.expect("conformance");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

/// Nothing is left behind but the object, if that is there. What is dropped is taken away a moment later.
async fn until_alone(folder: &Path) {
    for _ in 0..500 {
        if names(folder).iter().all(|name| name == "object") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", names(folder));
}

/// A commit that was cut off and is asked again has happened once; a link that was turned is a conflict.
#[tokio::test]
async fn a_commit_is_found_out_and_a_link_is_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, link) = (folder.path().join("object"), folder.path().join("link"));
    for _ in 0..20 {
        fs::write(&path, sample(10_000)).expect("a file");
        let base = Local::new(&path).only_replaced().stat().await.expect("stat").version;
        let mut writing = LocalSink::new(&path).begin(&base, 10_000).await.expect("begun");
        writing.write(0, b"new").await.expect("written");
        let _ = futures::FutureExt::now_or_never(writing.commit());
        let version = writing.commit().await.expect("it was done, by one of the two");
        let found = Local::new(&path).only_replaced().stat().await.expect("stat").version;
        assert_eq!(found, version);
        assert_eq!(fs::read(&path).expect("read")[..3], *b"new");
    }
    let other = folder.path().join("other");
    fs::write(&other, sample(10_000)).expect("a file");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let before = fs::read(&path).expect("read");
    let base = Local::new(&link).only_replaced().stat().await.expect("stat").version;
    let mut writing = LocalSink::new(&link).begin(&base, 10_000).await.expect("begun");
    writing.write(0, b"lost").await.expect("written");
    fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink(&other, &link).expect("turned");
    let error = writing.commit().await.expect_err("it leads elsewhere");
    assert!(matches!(error, SinkError::Conflict { .. }), "{error}");
    assert!(fs::read(&path).expect("read") == before);
}

#[tokio::test]
async fn local_files() {
    let folder = tempfile::tempdir().expect("a folder");
    for len in [1, 4096, LEN] {
        let path = folder.path().join("object");
        let bytes = sample(len);
        fs::write(&path, &bytes).expect("a file");
        let source = Local::new(&path).only_replaced();
        check_sink(source, LocalSink::new(&path), &bytes).await.expect("conformance");
        until_alone(folder.path()).await;
    }
}

#[tokio::test]
async fn a_file_keeps_its_permissions_and_a_link_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, link) = (folder.path().join("object"), folder.path().join("link"));
    fs::write(&path, sample(10_000)).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("permissions");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let before = fs::metadata(&path).expect("stat");
    let base = Local::new(&link).only_replaced().stat().await.expect("stat").version;
    let mut writing = LocalSink::new(&link).begin(&base, 10_000).await.expect("begun");
    writing.write(5000, &[7; 100]).await.expect("written");
    writing.commit().await.expect("committed");
    let after = fs::metadata(&path).expect("stat");
    assert_eq!(after.mode(), before.mode());
    assert_ne!(after.ino(), before.ino());
    assert!(fs::symlink_metadata(&link).expect("stat").is_symlink());
    let mut expected = sample(10_000);
    expected[5000..5100].fill(7);
    assert!(fs::read(&link).expect("read") == expected);
}

/// A list that lets one more user in, as the kernel keeps it: 32-bit version, then (tag, rights, id) each.
fn list_for_one_more_user() -> Vec<u8> {
    let nobody = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, nobody), (2, 6, 65_534), (4, 0, nobody), (0x10, 6, nobody), (0x20, 0, nobody)];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// The bits for the group are no rights of the group where a file has a list.
#[tokio::test]
async fn an_access_control_list_stays_and_lets_no_group_in() {
    const ACL: &str = "system.posix_acl_access";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("object");
    fs::write(&path, sample(10_000)).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
    let list = list_for_one_more_user();
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(&path, ACL, &list, flags) {
        println!("left out: this file system has no access control lists ({error})");
        return;
    }
    let of = |path: &Path| {
        let mut list = vec![0; 1024];
        let len = rustix::fs::getxattr(path, ACL, &mut list[..]).unwrap_or(0);
        list.truncate(len);
        (fs::metadata(path).expect("stat").mode() & 0o7777, list)
    };
    let replace = async || {
        let base = Local::new(&path).only_replaced().stat().await.expect("stat").version;
        let mut writing = LocalSink::new(&path).begin(&base, 10_000).await.expect("begun");
        writing.write(5000, &[7; 100]).await.expect("written");
        writing.commit().await.expect("committed");
    };
    assert_eq!(of(&path), (0o660, list.clone()));
    replace().await;
    assert_eq!(of(&path), (0o660, list.clone()), "nobody less, nobody more");

    // And what the folder has for new files is not for one that had none.
    rustix::fs::removexattr(&path, ACL).expect("removed");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("permissions");
    rustix::fs::setxattr(folder.path(), "system.posix_acl_default", &list, flags).expect("set");
    replace().await;
    assert_eq!(of(&path), (0o660, Vec::new()));
}

/// Whoever writes without us, in place or by renaming, before or after a new version began.
#[tokio::test]
async fn what_others_write_is_a_conflict() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, other) = (folder.path().join("object"), folder.path().join("other"));
    let in_place = |bytes: &[u8]| fs::write(&path, bytes).expect("written in place");
    let renamed = |bytes: &[u8]| {
        fs::write(&other, bytes).expect("a file");
        fs::rename(&other, &path).expect("renamed");
    };
    let deleted = |_: &[u8]| fs::remove_file(&path).expect("deleted");
    type Way<'a> = (&'a str, &'a dyn Fn(&[u8]));
    let ways: [Way<'_>; 3] =
        [("in place", &in_place), ("renamed", &renamed), ("deleted", &deleted)];
    for (what, write) in ways {
        for early in [false, true] {
            fs::write(&path, sample(LEN)).expect("a file");
            let source = Local::new(&path).only_replaced();
            let base = source.stat().await.expect("stat").version;
            let sink = LocalSink::new(&path);
            // Files have times of the kernel's ticks.
            std::thread::sleep(std::time::Duration::from_millis(20));
            if early {
                write(&vec![1; LEN]);
            }
            let outcome = async {
                let mut writing = sink.begin(&base, LEN as u64).await?;
                writing.write(4096, &[2; 4096]).await?;
                if !early {
                    write(&vec![1; LEN]);
                }
                writing.commit().await
            };
            let error = outcome.await.expect_err(what);
            let gone = matches!(error, SinkError::Failed(SourceError::NotFound { .. }));
            let conflict = matches!(error, SinkError::Conflict { .. });
            assert!(conflict || (gone && what == "deleted"), "{what}: {error}");
            match what {
                "deleted" => assert!(!path.exists()),
                _ => assert!(fs::read(&path).expect("read") == vec![1; LEN], "{what}"),
            }
            until_alone(folder.path()).await;
        }
    }
}

/// What a killed process left is taken away; what a living one has is not.
#[tokio::test]
async fn new_files_of_the_dead_are_swept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("object");
    fs::write(&path, sample(10_000)).expect("a file");
    fs::write(folder.path().join(".extmem-new-0123456789abcdef"), b"left").expect("a file");
    let base = Local::new(&path).only_replaced().stat().await.expect("stat").version;
    let sink = LocalSink::new(&path);
    let first = sink.begin(&base, 10_000).await.expect("begun");
    let second = sink.begin(&base, 10_000).await.expect("begun");
    assert_eq!(names(folder.path()).len(), 3, "{:?}", names(folder.path()));
    drop((first, second));
    until_alone(folder.path()).await;
}

/// Bytes of the object that processes are killed over.
const STAMPED: usize = 300_001;
/// Where a child stops, and then is killed; and the file.
const CHILD: &str = "SOURCES_TEST_SINK_CHILD";

/// A sink that stops for ever at one step of a flush, once it has said so.
pub(crate) struct Stops<S> {
    pub(crate) sink: S,
    pub(crate) at: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Begun,
    Wrote,
    Commits,
    Committed,
    Never,
}

impl Stops<()> {
    async fn pass(at: Step, here: Step) {
        if at == here {
            println!("stopped");
            std::future::pending().await
        }
    }
}

struct Stopping(Box<dyn Writing>, Step);

#[pager::async_trait]
impl<S: BlockSink> BlockSink for Stops<S> {
    fn name(&self) -> &str {
        self.sink.name()
    }

    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
        let writing = self.sink.begin(base, len).await?;
        Stops::pass(self.at, Step::Begun).await;
        Ok(Box::new(Stopping(writing, self.at)))
    }
}

#[pager::async_trait]
impl Writing for Stopping {
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.write(offset, bytes).await?;
        Stops::pass(self.1, Step::Wrote).await;
        Ok(())
    }

    async fn commit(&mut self) -> Result<Version, SinkError> {
        Stops::pass(self.1, Step::Commits).await;
        let version = self.0.commit().await?;
        Stops::pass(self.1, Step::Committed).await;
        Ok(version)
    }

    async fn abort(self: Box<Self>) {
        self.0.abort().await;
    }
}

/// Flushes one version after the other, each of one byte all over, until it is killed.
pub(crate) fn stamp(source: impl BlockSource, sink: impl BlockSink) {
    let pager = Pager::builder().budget_bytes(64 << 20).build().expect("a pager");
    let region = pager.open_mut(source, sink).expect("the object");
    for round in 1..=u8::MAX {
        region.write_at(0, &vec![round; region.len() as usize]).expect("written");
        region.flush().expect("flushed");
        println!("flushed");
    }
}

/// `kill -9` in the middle of a flush leaves all of the old bytes or all of the new ones.
#[test]
fn what_a_killed_process_leaves_is_one_version() {
    const TEST: &str = "sinks::what_a_killed_process_leaves_is_one_version";
    let steps = [Step::Begun, Step::Wrote, Step::Commits, Step::Committed, Step::Never];
    if let Ok(order) = std::env::var(CHILD) {
        let (step, path) = order.split_once(' ').expect("a step and a path");
        let step = steps[step.parse::<usize>().expect("a number")];
        let sink = Stops { sink: LocalSink::new(path), at: step };
        return stamp(Local::new(path).only_replaced(), sink);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("object");
    let mut seen = std::collections::BTreeSet::new();
    // Those that stop for themselves, and some that are killed wherever they are.
    let kills = (0..4usize).map(|step| (step, 0)).chain((0..24).map(|n| (4, 1 + n * 577 % 9_000)));
    for (step, after_us) in kills {
        fs::write(&path, vec![0; STAMPED]).expect("a file");
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{step} {}", path.display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a child");
        let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let word = if steps[step] == Step::Never { "flushed" } else { "stopped" };
        let reached = said.any(|line| line.expect("a line").ends_with(word));
        assert!(reached, "the child ended before");
        std::thread::sleep(std::time::Duration::from_micros(after_us));
        child.kill().expect("killed");
        child.wait().expect("waited for");
        let found = fs::read(&path).expect("the object is there");
        assert_eq!(found.len(), STAMPED);
        let stamp = found[0];
        assert!(found.iter().all(|&byte| byte == stamp), "{:?}: two versions", steps[step]);
        match steps[step] {
            Step::Never => assert!(stamp > 0, "one was committed"),
            Step::Committed => assert_eq!(stamp, 1),
            early => assert_eq!(stamp, 0, "{early:?}"),
        }
        seen.insert(stamp);
        // The next writer is not disturbed by what lies around, and takes it away.
        let pager = Pager::builder().budget_bytes(16 << 20).build().expect("a pager");
        let source = Local::new(&path).only_replaced();
        let region = pager.open_mut(source, LocalSink::new(&path)).expect("the object");
        region.write_at(5, &[stamp ^ 0xFF]).expect("written");
        region.flush().expect("flushed");
        assert_eq!(fs::read(&path).expect("the object")[5], stamp ^ 0xFF);
        assert_eq!(names(folder.path()), ["object"], "{:?}", steps[step]);
    }
    assert!(seen.len() > 3, "killed at various times: {seen:?}");
}
