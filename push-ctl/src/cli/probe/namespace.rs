//! Doing things in another network namespace.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

/// Does `work` in the network namespace of this name, as `ip netns` has it, or of this file; in this one if none. Sockets
/// that are made there stay there.
pub(super) fn within<T: Send>(
    name: Option<&str>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let Some(name) = name else {
        return work();
    };
    let namespace = File::open(Path::new("/run/netns").join(name)).map_err(|error| {
        let what = format!("there is no network namespace {name} (`ip netns` lists them): {error}");
        io::Error::new(error.kind(), what)
    })?;
    // Namespaces belong to threads.
    thread::scope(|scope| {
        let visit = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        visit
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the work there has failed")))
    })
}
