//! An S3 in a process of its own, so that what it costs is not counted as ours; and a block server.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

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

/// `extmem serve` in a process of its own, with an empty cache. Dropping it ends both.
pub struct BlockServer {
    child: Child,
    folder: TempDir,
    v000: String,
    http: String,
}

impl BlockServer {
    /// Serves what `s3` has, in blocks of `blocks`, such as `1MiB`.
    ///
    /// # Errors
    /// When `extmem` is not beside this program, or does not start.
    pub fn start(blocks: &str, s3: &Server) -> Result<BlockServer, String> {
        let here = env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
        let program = here.with_file_name("extmem");
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut command = Command::new(&program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--max-bytes", "8GiB", "--memory-bytes", "4GiB", "--block-bytes", blocks]);
        command.arg("--dir").arg(folder.path().join("cache"));
        command.arg("--unix").arg(folder.path().join("extmem.sock"));
        let endpoint = s3.url().rsplit_once("endpoint=").map_or("", |(_, url)| url);
        command.args(["--allow", "s3://bench/"]).env("AWS_ENDPOINT_URL", endpoint);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_REGION", "us-east-1");
        command.env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env_remove("EXTMEM_CACHE_KEY").env_remove("EXTMEM_CACHE_KEY_FILE");
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child =
            spawned.map_err(|e| format!("{}: {e}; build it first", program.display()))?;
        let output = child.stdout.take().ok_or("the server has no output")?;
        let mut server = BlockServer { child, folder, v000: String::new(), http: String::new() };
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        loop {
            let line = lines.next().ok_or("extmem serve did not start")?;
            if let Some(address) = line.strip_prefix("extmem: serving V000 on ") {
                address.clone_into(&mut server.v000);
            } else if let Some(url) = line.strip_prefix("extmem: serving a page on http://") {
                url.trim_end_matches('/').clone_into(&mut server.http);
            } else if line == "extmem: ready" {
                return Ok(server);
            }
        }
    }

    /// Where clients of V000 find it.
    pub fn v000(&self) -> &str {
        &self.v000
    }

    /// Host and port of its page.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// The Unix socket of its own protocol.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("extmem.sock")
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BlockServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
