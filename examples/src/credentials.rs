//! Credentials of an S3 that the program runs itself.

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// The access key of embedded endpoints.
pub const ACCESS_KEY: &str = "embedded";
/// Their secret key.
pub const SECRET_KEY: &str = "embedded-secret";
/// Set for the process that has them in its environment.
const MARK: &str = "EXTMEM_EMBEDDED_CREDENTIALS";

/// Starts the program over, unless this was done, with the endpoint's credentials in the
/// environment, where the S3 client looks for them, and without settings that would lead it
/// elsewhere. A process cannot change its own environment safely once it has threads.
///
/// # Errors
/// Returns only if the program goes on: `Ok` in the process that has them, else the exit code.
pub fn ensure() -> Result<(), ExitCode> {
    if env::var_os(MARK).is_some() {
        return Ok(());
    }
    let failed = match env::current_exe() {
        Ok(program) => Command::new(program)
            .args(env::args_os().skip(1))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", "us-east-1")
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_ENDPOINT_URL")
            .env_remove("AWS_ENDPOINT_URL_S3")
            // What is measured comes from the S3.
            .env_remove("EXTMEM_CACHE")
            .env_remove("EXTMEM_SERVER")
            .env(MARK, "1")
            .exec(),
        Err(error) => error,
    };
    eprintln!("cannot start over with credentials: {failed}");
    Err(ExitCode::FAILURE)
}
