//! Notices that the content of the configuration has changed: that of the file, and of every file it names.
//!
//! Content is compared and not times, so that it works with a symbolic link that is swapped (Kubernetes), with a file
//! that is renamed over another (editors), and does nothing when a file was only touched.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Handle, Trigger};
use crate::tasks;

/// What is written in several steps is read after the last of them.
const SETTLES: Duration = Duration::from_millis(100);
/// Of each file; what lies behind it is not looked at.
const LONGEST: u64 = 16 << 20;

/// The files, each with what tells its content from another; one that is not there has a content too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched(BTreeMap<PathBuf, u64>);

impl Watched {
    /// Reads all of `files`.
    pub(super) fn read(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(
            files
                .into_iter()
                .map(|path| {
                    let content = content(&path);
                    (path, content)
                })
                .collect(),
        )
    }

    /// Reads those of `files` that are not watched yet.
    pub(super) fn also(&mut self, files: &[PathBuf]) {
        for path in files {
            self.0.entry(path.clone()).or_insert_with(|| content(path));
        }
    }

    /// Watches only what `keep` says.
    pub(super) fn retain(&mut self, keep: impl Fn(&Path) -> bool) {
        self.0.retain(|path, _| keep(path));
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys()
    }

    /// Reads the same files anew.
    fn again(&self) -> Self {
        Self::read(self.files().cloned())
    }
}

fn content(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    read(path).ok().hash(&mut hasher);
    hasher.finish()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reloads whenever the content has changed and is at rest, for as long as the future is kept.
pub(super) async fn watch(handle: Handle) {
    loop {
        let published = handle.0.published.notified();
        let Some(period) = handle.0.current.load().config.server.watch else {
            published.await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = published => continue,
        }
        let before = handle.0.watched().clone();
        let Some(changed) = read_again(&before).await.filter(|now| *now != before) else { continue };
        tokio::time::sleep(SETTLES).await;
        let at_rest = read_again(&before).await.is_some_and(|now| now == changed);
        if at_rest && *handle.0.watched() == before {
            handle.reload(Trigger::Change).await;
        }
    }
}

async fn read_again(watched: &Watched) -> Option<Watched> {
    let watched = watched.clone();
    tasks::blocking(move || watched.again()).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("one"), "a").unwrap();
        std::os::unix::fs::symlink(path("one"), path("link")).unwrap();
        let first = Watched::read([path("link"), path("absent")]);
        std::fs::write(path("one"), "a").unwrap();
        std::fs::write(path("new"), "a").unwrap();
        std::fs::rename(path("new"), path("one")).unwrap();
        assert_eq!(first.again(), first, "the same bytes");
        std::fs::write(path("two"), "b").unwrap();
        std::fs::remove_file(path("link")).unwrap();
        let second = first.again();
        assert_ne!(second, first, "gone");
        std::os::unix::fs::symlink(path("two"), path("link")).unwrap();
        let third = first.again();
        assert!(third != first && third != second, "leads elsewhere");
        std::fs::write(path("absent"), "").unwrap();
        assert_ne!(first.again(), third, "it came, though it is empty");
    }
}
