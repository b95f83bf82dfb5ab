//! The connections that several objects share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use pager::SourceError;
use reqwest::{Certificate, Method, RequestBuilder, redirect::Policy};
use url::Url;

use super::{CONNECT, FIRST_BYTE, STALL};
use crate::{authorities, encoding::chain_text};

/// How to connect, and how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientOptions {
    /// A PEM file of authorities to trust besides those of the system. Default: none.
    pub ca: Option<PathBuf>,
    /// The longest that making a connection may take. Default: 5 s.
    pub connect: Duration,
    /// The longest from sending a request to the head of its answer, connecting and redirects
    /// included. Default: 10 s.
    pub first_byte: Duration,
    /// The longest silence within a body. Default: 10 s.
    pub stall: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { ca: None, connect: CONNECT, first_byte: FIRST_BYTE, stall: STALL }
    }
}

/// A pool of HTTP connections. Clones share it. A connection belongs to the runtime that made it,
/// so a client serves the objects of one runtime, that is of one pager.
///
/// Connections speak HTTP/1.1: parallel ranges want a connection each, where HTTP/2 would squeeze
/// them into one and its flow control.
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
    first_byte: Duration,
    stall: Duration,
}

impl Client {
    /// A client with these options.
    ///
    /// # Errors
    /// When the file of authorities cannot be read or the TLS library cannot be set up.
    pub fn new(options: &ClientOptions) -> Result<Client, SourceError> {
        let refuse = |error: reqwest::Error| SourceError::Permanent {
            object: "http client".to_owned(),
            reason: chain_text(&error),
            cause: Some(Arc::new(error)),
        };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("extmem/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .http1_only()
            // Shorter than what servers keep open (60 s and more), so that we close first and no
            // request is sent into a connection that is being closed.
            .pool_idle_timeout(Duration::from_secs(50))
            .connect_timeout(options.connect);
        if let Some(path) = &options.ca {
            let roots = authorities::read(path)?
                .iter()
                .map(|pem| Certificate::from_pem(pem.as_bytes()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(refuse)?;
            builder = builder.tls_certs_merge(roots);
        }
        let inner = builder.build().map_err(refuse)?;
        Ok(Client { inner, first_byte: options.first_byte, stall: options.stall })
    }

    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.inner.request(method, url)
    }

    pub(super) fn first_byte(&self) -> Duration {
        self.first_byte
    }

    pub(super) fn stall(&self) -> Duration {
        self.stall
    }
}
