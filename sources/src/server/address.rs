//! Where a block server is, as addresses and the environment say it.

use std::path::PathBuf;

use super::client::Place;
use crate::encoding;

/// `unix:///run/extmem.sock?fallback=direct`, `tcp://127.0.0.1:9011?token_file=/etc/extmem.token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    pub(crate) place: Place,
    /// What the server is to open.
    pub(crate) url: Option<String>,
    /// Whether the object is read directly while the server cannot be reached.
    pub(crate) fallback: bool,
    pub(crate) token_file: Option<PathBuf>,
}

impl ServerAddress {
    pub(crate) fn parse(text: &str) -> Result<ServerAddress, String> {
        let wrong = "a block server is at unix:///path/of/socket or tcp://host:port";
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let place = if let Some(path) = place.strip_prefix("unix://") {
            let path = encoding::percent_decoded(path).filter(|path| path.starts_with('/'));
            Place::Unix(path.ok_or(wrong)?.into())
        } else if let Some(address) = place.strip_prefix("tcp://") {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let good = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            Place::Tcp(Some(address.to_owned()).filter(|_| good).ok_or(wrong)?)
        } else {
            return Err(wrong.to_owned());
        };
        let mut address = ServerAddress { place, url: None, fallback: false, token_file: None };
        for (name, value) in encoding::options(options)? {
            match (name.as_str(), value.as_str()) {
                ("url", url) if !url.is_empty() => address.url = Some(url.to_owned()),
                ("fallback", "direct") => address.fallback = true,
                ("fallback", "none") => address.fallback = false,
                ("token_file", path) if path.starts_with('/') => {
                    address.token_file = Some(path.into());
                }
                _ => {
                    return Err(format!(
                        "{name}={value} is no option of a block server; there are url, \
                         fallback=direct and token_file=/path"
                    ));
                }
            }
        }
        Ok(address)
    }

    /// The secret of a TCP listener.
    pub(crate) fn token(&self) -> Result<String, String> {
        let Some(path) = &self.token_file else { return Ok(String::new()) };
        let read = std::fs::read_to_string(path);
        let token = read.map_err(|error| format!("token file {}: {error}", path.display()))?;
        Ok(token.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers() {
        let address =
            ServerAddress::parse("unix:///run/a%20b?url=s3%3A%2F%2Fb%2Fk&fallback=direct");
        let address = address.expect("an address");
        assert_eq!(address.place, Place::Unix("/run/a b".into()));
        assert_eq!((address.url.as_deref(), address.fallback), (Some("s3://b/k"), true));
        let address = ServerAddress::parse("tcp://[::1]:9011?token_file=/t").expect("an address");
        assert_eq!(address.place, Place::Tcp("[::1]:9011".to_owned()));
        assert_eq!(address.token_file, Some("/t".into()));
        for wrong in [
            "",
            "unix://relative",
            "tcp://host",
            "tcp://:1",
            "tcp://host:99999",
            "http://host:1",
            "unix:///x?fallback=maybe",
            "unix:///x?url=",
            "unix:///x?token_file=t",
        ] {
            assert!(ServerAddress::parse(wrong).is_err(), "{wrong}");
        }
    }
}
