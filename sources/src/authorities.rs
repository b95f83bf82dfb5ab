//! Files of certificate authorities, read and checked before a TLS library sees them.

use std::{fs, path::Path, sync::Arc};

use pager::SourceError;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::encoding::base64;

/// The certificates of a PEM file, one PEM text each. Those that are no usable authority (bundles
/// of systems hold some) are left out; a file without any usable one is refused.
pub(crate) fn read(path: &Path) -> Result<Vec<String>, SourceError> {
    let refuse = |reason: String, cause: Option<pager::Cause>| SourceError::Permanent {
        object: format!("file of authorities {}", path.display()),
        reason,
        cause,
    };
    let pem = fs::read(path).map_err(|error| {
        refuse(format!("it cannot be read: {error}"), Some(Arc::new(error) as pager::Cause))
    })?;
    let mut usable = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let Ok(certificate) = certificate else {
            return Err(refuse("it is no text in PEM form".to_owned(), None));
        };
        if RootCertStore::empty().add(certificate.clone()).is_ok() {
            usable.push(pem_text(&certificate));
        }
    }
    match usable.is_empty() {
        true => Err(refuse("it holds no certificate of an authority".to_owned(), None)),
        false => Ok(usable),
    }
}

fn pem_text(der: &[u8]) -> String {
    let digits = base64(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        // Digits are ASCII, so every index is an edge of a character.
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_authorities() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        assert!(read(&path).is_err(), "missing");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "no pem at all", broken] {
            fs::write(&path, text).expect("write");
            let error = read(&path).expect_err(text);
            assert!(error.to_string().contains("ca.pem"), "{error}");
        }
    }
}
