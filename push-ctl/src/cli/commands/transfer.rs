//! Sessions that move to another gateway, or into a copy. The file has keys in it: nobody else may read it.

use crate::admin::api::{ExportQuery, ImportQuery, SessionsImported};
use crate::cli::client;
use crate::cli::people::plural;
use crate::cli::{Failure, Output};
use clap::Args;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use nix::fcntl::OFlag;
use reqwest::Body;
use serde::Deserialize;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a file that only its owner may read.
const OWNER_ONLY: u32 = 0o600;

/// How much of a file is sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// More than the last line of a file has.
const TAIL_BYTES: usize = 256;

/// Write terminals with their sessions to a file, for another gateway or as a copy; it has keys in it
///
/// All terminals that are in the first operative state or suspended are written, with all that it takes to go on
/// delivering to their sessions: keys, and the windows that keep old triggers from being accepted again. The
/// sessions stay. A trigger that this gateway accepts later is not in the windows: before sessions move, take the
/// program off the NICs where triggers come in (`push-ctl nic detach`), so that none is accepted on both gateways.
#[derive(Args, Debug)]
pub(in crate::cli) struct Export {
    /// The file, which must not be there yet; only its owner may read it
    file: PathBuf,
    /// Only sessions of this application, and terminals that have such
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only terminals of this realm
    #[arg(long, value_name = "NAME")]
    realm: Option<String>,
}

/// Take up the terminals and sessions of a file that `export` has written: all of them, or none
///
/// First all of the file is looked at: it has to be whole, its applications and realms have to be known here, and
/// slots, endpoint names and addresses have to be free. What is here already, exactly as it is in the file, is left
/// as it is. Registrations end when they would have ended on the other gateway.
#[derive(Args, Debug)]
pub(in crate::cli) struct Import {
    /// The file, which nobody but its owner may be able to read
    file: PathBuf,
    /// Only look at the file, and at what would become of it
    #[arg(long)]
    dry_run: bool,
}

/// The last line of a file.
#[derive(Deserialize)]
struct LastLine {
    end: End,
}

#[derive(Deserialize)]
struct End {
    terminals: usize,
    sessions: usize,
}

impl Export {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        let Self { file, app, realm } = self;
        if file.as_os_str() == "-" {
            let error = "sessions are exported to a file, as there are keys among them";
            return Err(Failure::with_hint(
                error,
                "name a file that isn't there yet",
            ));
        }
        let shown = file.display().to_string();
        let failed = |error: &io::Error| Failure::new(format!("can't write {shown}: {error}"));
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(OWNER_ONLY)
            .open(&file);
        let mut opened = opened.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::with_hint(
                format!("{shown} is there already"),
                "name a file that isn't there yet",
            ),
            _ => failed(&error),
        })?;
        let mut tail = Vec::new();
        let query = ExportQuery { app, realm };
        let written = client::download(socket, "/v1/sessions/export", &query, |piece| {
            opened.write_all(piece).map_err(|error| failed(&error))?;
            tail.extend_from_slice(piece);
            tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
            Ok(())
        });
        let end = written
            .and_then(|()| opened.sync_all().map_err(|error| failed(&error)))
            .and_then(|()| {
                let last = tail.split(|&byte| byte == b'\n').rev().nth(1);
                let last: Option<LastLine> =
                    last.and_then(|line| serde_json::from_slice(line).ok());
                last.map(|last| last.end)
                    .ok_or_else(|| client::not_understood(socket))
            });
        let End {
            terminals,
            sessions,
        } = end.inspect_err(|_| {
            // A part of the sessions is of no use, and has keys in it.
            let _gone = fs::remove_file(&file);
        })?;
        Output::new(
            &json!({ "file": file, "terminals": terminals, "sessions": sessions }),
            format!(
                "Wrote {} with {} to {shown}, which has their keys in it: whoever can read it can send triggers.\n",
                plural(terminals, "terminal"),
                plural(sessions, "session"),
            ),
        )
    }
}

impl Import {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        let Self { file, dry_run } = self;
        let opened = open(&file)?;
        let query = ImportQuery { dry_run };
        let imported: SessionsImported =
            client::upload(socket, "/v1/sessions/import", &query, body(opened))?;
        let is_whole = imported.left_out.is_empty();
        let mut output = Output::new(&imported, tell(&imported))?;
        output.is_good = is_whole;
        Ok(output)
    }
}

/// Opens a file that nobody else can read.
fn open(path: &Path) -> Result<File, Failure> {
    let shown = path.display();
    let failed = |error: io::Error| Failure::new(format!("can't read {shown}: {error}"));
    let opened = OpenOptions::new()
        .read(true)
        // Whatever is there, it isn't waited for.
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::new(format!("{shown} is not a file")));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(Failure::with_hint(
            format!("others may read {shown}, which has keys in it, or write to it"),
            format!(
                "`chmod 600 {shown}`; if they may have read it, `push-ctl session rotate` the sessions afterwards"
            ),
        ));
    }
    Ok(opened)
}

fn body(mut file: File) -> Body {
    let pieces = std::iter::from_fn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some(Ok(Frame::data(Bytes::from(piece))))
            }
            Err(error) => Some(Err(error)),
        }
    });
    Body::wrap(StreamBody::new(stream::iter(pieces)))
}

fn tell(imported: &SessionsImported) -> String {
    let SessionsImported {
        dry_run,
        terminals,
        sessions,
        terminals_known,
        sessions_known,
        sessions_expired,
        left_out,
    } = imported;
    let (what, were) = if *dry_run {
        ("Would import", "are")
    } else {
        ("Imported", "were")
    };
    let mut text = format!(
        "{what} {} with {}.\n",
        plural(*terminals, "terminal"),
        plural(*sessions, "session"),
    );
    if terminals_known + sessions_known > 0 {
        text += &format!(
            "{} and {} {were} here already.\n",
            plural(*terminals_known, "terminal"),
            plural(*sessions_known, "session"),
        );
    }
    if *sessions_expired > 0 {
        text += &format!("{} had expired.\n", plural(*sessions_expired, "session"));
    }
    for why in left_out {
        text += &format!("left out, as it has changed meanwhile: {why}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions");
        fs::write(&path, "").unwrap();
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = open(&path).map(drop);
            assert_eq!(opened.is_ok(), is_good, "{mode:o}: {opened:?}");
            if let Err(failure) = opened {
                assert!(failure.hint.unwrap().contains("chmod 600"));
            }
        }
        assert!(open(directory.path()).is_err());
    }
}
