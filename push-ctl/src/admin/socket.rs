//! The unix socket of the admin interface.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// The socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens on it.
    #[error("admin_socket: another push-ctl listens on {}; stop it, or configure another path", .0.display())]
    InUse(PathBuf),
    /// There is something else of that name.
    #[error("admin_socket: {} is not a socket; remove it, or configure another path", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refuses.
    #[error("admin_socket: can't listen on {}: {cause}; the daemon's user has to be able to write there", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
}

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`. A file that a killed daemon has left there is replaced.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |cause| SocketError::Io {
            path: path.to_owned(),
            cause,
        };
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(io)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(io)?;
                }
                Err(error) => return Err(io(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        let socket = Self {
            listener,
            path: path.to_owned(),
        };
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(io)?;
        socket.listener.set_nonblocking(true).map_err(io)?;
        Ok(socket)
    }

    /// For tokio. The file goes with `self` all the same.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may be gone; then there is nothing to remove.
        let _gone = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        fs::create_dir(directory.path().join("run")).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let socket = Socket::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop(socket);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
