//! A socket of this machine, and who is on its other end.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use super::{blocks::Gate, seats::Peer};

/// A Unix socket that is gone when it is dropped.
pub(super) struct Listener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    users: Vec<u32>,
}

impl Listener {
    /// Listens at `path`, for this user and `others`. A socket that nobody listens on any more, left
    /// by a server that was killed, is replaced.
    ///
    /// # Errors
    /// When another server listens there, or there is something else.
    pub(super) fn bind(path: &Path, others: &[u32]) -> io::Result<Listener> {
        if let Ok(found) = fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !found.file_type().is_socket() {
                let text = "there is something that is no socket";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            if UnixStream::connect(path).is_ok() {
                let text = "another server listens there";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
        }
        // Under another name until it has its mode: nobody connects before.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        let listener = tokio::net::UnixListener::bind(&temporary)?;
        let mode = if others.is_empty() { 0o600 } else { 0o666 };
        fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
        fs::rename(&temporary, path)?;
        // The user that made the socket is this one.
        use std::os::unix::fs::MetadataExt;
        let mut users = vec![fs::symlink_metadata(path)?.uid()];
        users.extend(others);
        Ok(Listener { listener, path: path.to_owned(), users })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<(tokio::net::UnixStream, Gate, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        Ok(match self.users.contains(&user) {
            true => (stream, Gate::Known, Peer::User(user)),
            false => (stream, Gate::Closed("this user may not ask here"), Peer::Refused),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
