//! Output that goes on for as long as somebody reads it.

use super::Failure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// How often it is looked whether somebody still reads.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Prints to stdout at once. False if nobody reads it any more: who closes the pipe has read enough.
pub(super) fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(format!("can't write to stdout: {error}"))),
    }
}

/// Whether somebody may still read what is printed: neither the end of a pipe nor a terminal is gone. For who
/// has nothing to print at the moment.
pub(super) fn is_read() -> bool {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    // What can't be asked is found out when something is printed.
    let _cannot_tell = poll(&mut polled, PollTimeout::ZERO);
    !polled[0]
        .revents()
        .is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
