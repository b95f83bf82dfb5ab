//! An S3 in a process of its own, so that what it costs is not counted as ours.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::credentials::{ACCESS_KEY, SECRET_KEY};

/// How far away the S3 is.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// Milliseconds from a request to the first byte of its answer.
    pub first_byte_ms: u64,
    /// Bytes per second of one connection.
    pub rate: u64,
    /// Bytes per second of all connections together; 0 is no bound.
    pub link_rate: u64,
}

/// A running server. Dropping it ends the process.
pub struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Serves the file at `path` as `s3://bench/<name>`.
    ///
    /// # Errors
    /// When `s3-endpoint` is not beside this program, or does not start.
    pub fn start(path: &Path, name: &str, distance: Distance) -> Result<Server, String> {
        let here = env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
        let program = here.with_file_name("s3-endpoint");
        let mut child = Command::new(&program)
            .args(["--first-byte-ms", &distance.first_byte_ms.to_string()])
            .args(["--rate", &distance.rate.to_string()])
            .args(["--link-rate", &distance.link_rate.to_string()])
            .arg("--file")
            .arg(format!("{}=bench/{name}", path.display()))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}; build it first", program.display()))?;
        let output = child.stdout.take().ok_or("the server has no output")?;
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let mut server = Server { child, url: String::new() };
        if read.is_err() || !line.starts_with("http") {
            return Err("the server did not start".to_owned());
        }
        server.url = format!("s3://bench/{name}?region=us-east-1&endpoint={}", line.trim_end());
        Ok(server)
    }

    /// The object's address, options included.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
