//! Where the test servers are, as their start-up script prints it into the environment.

use std::{env, path::PathBuf};

use aws_sdk_s3::primitives::ByteStream;
use sources::aws::{Aws, AwsOptions};

/// The value of a variable that the script sets. Without it a test is left out, with a line that
/// says so; in CI it fails.
pub(crate) fn variable(name: &str, what: &str) -> Option<String> {
    if let Some(value) = env::var(name).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "CI needs {name} for {what}");
    println!("left out: {what}: {name} is not set; start the test servers first");
    None
}

/// Held by a test as long as it uses the switch of faults, which is one for the whole port.
pub(crate) static FAULT_PORT: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Bytes with no period that a range could hide in.
pub(crate) fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A bucket of the S3 server, with a name that no other test process uses.
pub(crate) struct Bucket {
    pub(crate) name: String,
    aws: Aws,
}

impl Bucket {
    pub(crate) async fn make(endpoint: &str, what: &str) -> Bucket {
        let options = AwsOptions { endpoint: Some(endpoint.to_owned()), ..AwsOptions::default() };
        let name = format!("sources-{what}-{}", std::process::id());
        let bucket = Bucket { name, aws: Aws::new(options) };
        let client = bucket.aws.s3().await.expect("a client");
        client.create_bucket().bucket(&bucket.name).send().await.expect("a bucket");
        bucket
    }

    pub(crate) async fn put(&self, key: &str, bytes: &[u8]) {
        let client = self.aws.s3().await.expect("a client");
        let body = ByteStream::from(bytes.to_vec());
        let put = client.put_object().bucket(&self.name).key(key).body(body);
        put.send().await.expect("put");
    }

    pub(crate) async fn delete(&self, key: &str) {
        let client = self.aws.s3().await.expect("a client");
        client.delete_object().bucket(&self.name).key(key).send().await.expect("delete");
    }

    pub(crate) async fn keep_versions(&self) {
        use aws_sdk_s3::types::{BucketVersioningStatus::Enabled, VersioningConfiguration};
        let client = self.aws.s3().await.expect("a client");
        let settings = VersioningConfiguration::builder().status(Enabled).build();
        let put = client.put_bucket_versioning().bucket(&self.name);
        put.versioning_configuration(settings).send().await.expect("versioning");
    }
}

/// A file below the root of the web server, gone when dropped.
pub(crate) struct WebFile {
    path: PathBuf,
    /// Below any of the server's bases, without a leading slash.
    pub(crate) place: String,
}

impl WebFile {
    pub(crate) fn make(root: &str, name: &str, bytes: &[u8]) -> WebFile {
        // Two levels, so that the same file is an object of a bucket to the read-only S3.
        let place = format!("sources-{}/{name}", std::process::id());
        let path = PathBuf::from(root).join(&place);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("a file");
        WebFile { path, place }
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).expect("a file");
    }
}

impl Drop for WebFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
