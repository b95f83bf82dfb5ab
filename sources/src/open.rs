//! Which source for which address.
//!
//! | address | leaf | feature |
//! | --- | --- | --- |
//! | `s3://bucket/key` | [`s3`](crate::s3) | `s3` (default) |
//! | `http://host/path`, `https://host/path` | [`http`](crate::http) | `http` (default) |
//! | `file:///path` or a path alone | [`local`](crate::local) | |
//! | `gs://bucket/key` | [`store`](crate::store) | `gs` |
//! | `az://container/key` | [`store`](crate::store) | `azure` |
//!
//! **Options** stand behind a `?`, as `name=value` joined by `&`; a name alone means `true`:
//! `s3://bucket/key?region=eu-west-1&anonymous`. Of `http` and `https` addresses the query belongs
//! to the server, so there the options stand in the fragment, which no server ever sees:
//! `https://host/path?their=query#extmem:retries=3`. A path alone has no options: every character
//! is part of the name. Names and values are percent-decoded, and so are keys: write `%3F` for a
//! `?` and `%25` for a `%`. An option that is unknown, or given twice, is an error.
//!
//! | option | for | meaning |
//! | --- | --- | --- |
//! | `region` | s3 | the bucket's region |
//! | `profile` | s3 | the profile of the AWS configuration files |
//! | `endpoint` | s3 | URL of the service, such as `http://127.0.0.1:9000` |
//! | `path_style` | s3 | `true`: bucket in the path; `false`: in the host's name |
//! | `anonymous` | s3, gs, az | send no credentials |
//! | `requester_pays` | s3 | we pay for the requests |
//! | `version_id` | s3 | read this version of the object |
//! | `account` | az | the storage account |
//! | `ca` | s3, http | PEM file of authorities to trust besides the system's |
//! | `retries` | all but files | attempts after the first; 0 turns retrying off. Default: 7 |
//! | `deadline_ms` | all but files | milliseconds for one call with all its retries. Default: 45000 |
//! | `stall_ms` | all but files | longest silence in milliseconds. Default: 10000 |
//! | `requests_max` | all but files | most requests at once. Default: 256 |
//! | `hedge` | all but files | send a second GET when the first is late (at most 2 % more). Default: `false` |
//! | `cache` | all but files | directory of a [disk cache](crate::disk_cache), or `off`. Default: what `EXTMEM_CACHE` names |
//!
//! **A block server** (`extmem serve`) reads for all programs of a machine: addresses like
//! `server+unix:///run/extmem.sock?url=s3%3A%2F%2Fbucket%2Fkey`, or, for every remote object, the
//! variable `EXTMEM_SERVER=unix:///run/extmem.sock`. Where [`Options`] say themselves who reads, from
//! which service, or into which cache, the variable is not heeded. Behind a `?` may stand `fallback=direct`, to
//! read directly while the server cannot be reached, and `token_file`, for `tcp://host:port`.
//!
//! **What comes back** is the leaf with its wrappers on, outermost first: [`DiskCache`] if there is
//! one, [`Retry`], [`Limit`], [`Hedge`] if asked for, [`Counted`]. A file wears [`Counted`] alone: its errors do not go away by
//! themselves.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pager::{BlockSource, SourceError};

#[cfg(feature = "http")]
use crate::http::{Client, ClientOptions, Credentials, Http};
use crate::{
    allow::{self, AllowList},
    disk_cache::{Cache, DiskCache, shared},
    encoding::{self, percent_decoded_bytes},
    hedge::Hedge,
    limit::{Gate, Limit, LimitPolicy},
    local::Local,
    retry::{Retry, RetryPolicy},
    server::{Link, Place, Served, address::ServerAddress},
    traffic::{Counted, Traffic},
};
#[cfg(feature = "s3")]
use crate::{
    aws::{Aws, AwsOptions},
    s3::{S3, S3Options},
};

/// How long one call waits for a block server that cannot be reached.
const SERVER_WAIT: Duration = Duration::from_secs(8);

/// Clients and gates that one set of options keeps. Beyond that they are made and not kept.
const SHARED_MAX: usize = 256;

/// Opens `url` with the options that stand in it. Nothing is sent before the source is used.
///
/// # Errors
/// [`SourceError::Permanent`] for an address that cannot be understood, an option that is unknown
/// or ill-formed, and a scheme whose feature is off.
pub fn open(url: &str) -> Result<Arc<dyn BlockSource>, SourceError> {
    Options::default().open(url)
}

/// How to open addresses. What an address says for itself comes before what is set here.
///
/// Sources that were opened by one `Options`, or by clones of it, share connections, credentials
/// and the limit for each host, or bucket of an endpoint. Connections belong to a runtime: use one `Options` per pager.
#[derive(Clone, Default)]
pub struct Options {
    settings: Settings,
    traffic: Traffic,
    allow: Option<Arc<AllowList>>,
    #[cfg(feature = "http")]
    credentials: Credentials,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    gates: HashMap<GateKey, Gate>,
    links: HashMap<(Place, String), Link>,
    #[cfg(feature = "http")]
    http: HashMap<ClientOptions, Client>,
    #[cfg(feature = "s3")]
    aws: HashMap<AwsOptions, Aws>,
}

/// A leaf with the standard wrappers on, and what tells it from others of the same name.
struct Dressed {
    source: Arc<dyn BlockSource>,
    scope: String,
}

/// What tells one gate from another. Whoever sets limits of their own gets a gate of their own.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GateKey {
    server: String,
    endpoint: Option<String>,
    limit: LimitPolicy,
}

/// Everything that an address can say for itself.
#[derive(Clone, Default)]
struct Settings {
    region: Option<String>,
    profile: Option<String>,
    endpoint: Option<String>,
    path_style: Option<bool>,
    anonymous: bool,
    requester_pays: bool,
    version_id: Option<String>,
    account: Option<String>,
    ca: Option<PathBuf>,
    retry: RetryPolicy,
    limit: LimitPolicy,
    hedge: bool,
    cache: CacheChoice,
}

/// Where bytes are kept on disk.
#[derive(Clone, Default)]
enum CacheChoice {
    /// Where the environment says, or nowhere.
    #[default]
    Environment,
    Nowhere,
    Directory(PathBuf),
    Open(Cache),
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        impl Options {
            $($(#[$doc])* pub fn $name(mut self, $name: $type) -> Options {
                self.settings.$name = $name.into();
                self
            })*
        }
    };
}

setters! {
    /// Sets how long and how often to try. Default: [`RetryPolicy::default`].
    retry: RetryPolicy;
    /// Sets how many requests may run at once. Default: [`LimitPolicy::default`].
    limit: LimitPolicy;
    /// Sets whether late GETs are sent a second time. Default: `false`.
    hedge: bool;
    /// Sets the region of buckets. Default: as the AWS tools find it.
    region: String;
    /// Sets the profile of the AWS configuration files. Default: `AWS_PROFILE`.
    profile: String;
    /// Sets the URL of the S3 service. Default: as the AWS tools find it.
    endpoint: String;
    /// Sets whether buckets stand in the path. Default: where the endpoint has no subdomains.
    path_style: bool;
    /// Sets whether requests go without credentials. Default: `false`.
    anonymous: bool;
    /// Sets whether we pay for requests to others' buckets. Default: `false`.
    requester_pays: bool;
    /// Sets the storage account of `az` addresses. Default: `AZURE_STORAGE_ACCOUNT_NAME`.
    account: String;
    /// Sets a PEM file of further authorities. Default: for S3 what `AWS_CA_BUNDLE` names.
    ca: PathBuf;
}

impl Options {
    /// Keeps what is read from remote objects in `cache`; `None` keeps it nowhere. Default: in the
    /// directory that `EXTMEM_CACHE` names, if it does.
    pub fn cache(mut self, cache: Option<Cache>) -> Options {
        self.settings.cache = cache.map_or(CacheChoice::Nowhere, CacheChoice::Open);
        self
    }

    /// Opens only addresses that are on this list: for programs that open what strangers name.
    /// Redirects and links are held to it, too, and addresses may say for themselves no more than
    /// `region` and `version_id`. Default: everything is opened.
    pub fn allow(mut self, list: AllowList) -> Options {
        self.allow = Some(Arc::new(list));
        self
    }

    /// Counts requests and bytes of everything opened with these options in `traffic`.
    pub fn traffic(mut self, traffic: Traffic) -> Options {
        self.traffic = traffic;
        self
    }

    /// Sets what to send to `http` and `https` servers besides the requests themselves.
    #[cfg(feature = "http")]
    pub fn credentials(mut self, credentials: Credentials) -> Options {
        self.credentials = credentials;
        self
    }

    /// Opens `url`. Nothing is sent before the source is used.
    ///
    /// # Errors
    /// As for [`open`].
    pub fn open(&self, url: &str) -> Result<Arc<dyn BlockSource>, SourceError> {
        if let Some(server) = url.strip_prefix("server+").filter(|_| self.allow.is_none()) {
            return self.open_named_server(server);
        }
        let address = Address::parse(url)?;
        let settings = self.settings_for(&address)?;
        let is_file = address.scheme == Scheme::File;
        // What was set for an object comes before what the environment says for all.
        if !is_file
            && self.allow.is_none()
            && self.unknown_to_servers().is_none()
            && let Some(server) = env::var("EXTMEM_SERVER").ok().filter(|text| !text.is_empty())
        {
            let server = ServerAddress::parse(&server);
            let server = server.map_err(|why| address.refuse(format!("EXTMEM_SERVER: {why}")))?;
            return self.open_served(&server, address, settings);
        }
        let choice = settings.cache.clone();
        let Dressed { source, scope } = self.dressed(address, settings)?;
        let cache = match choice {
            _ if is_file => None,
            CacheChoice::Open(cache) => Some(cache),
            CacheChoice::Directory(directory) => shared::open(&directory),
            CacheChoice::Nowhere => None,
            CacheChoice::Environment => {
                shared::directory_of_environment().and_then(|directory| shared::open(&directory))
            }
        };
        Ok(match cache {
            Some(cache) => Arc::new(DiskCache::new(source, cache).scope(scope)),
            None => source,
        })
    }

    /// A setting of ours that changes what is read, or where it is kept, and that a block server
    /// would not hear of: it reads with its own.
    fn unknown_to_servers(&self) -> Option<&'static str> {
        let settings = &self.settings;
        #[cfg(feature = "http")]
        let credentials = !self.credentials.is_empty();
        #[cfg(not(feature = "http"))]
        let credentials = false;
        let set = [
            ("region", settings.region.is_some()),
            ("profile", settings.profile.is_some()),
            ("endpoint", settings.endpoint.is_some()),
            ("path_style", settings.path_style.is_some()),
            ("anonymous", settings.anonymous),
            ("requester_pays", settings.requester_pays),
            ("account", settings.account.is_some()),
            ("ca", settings.ca.is_some()),
            ("credentials", credentials),
            ("cache", !matches!(settings.cache, CacheChoice::Environment)),
        ];
        set.iter().find(|(_, is_set)| *is_set).map(|(name, _)| *name)
    }

    /// Opens `url` and keeps what is read in `cache`, whatever else says where to keep it. Files, too:
    /// their versions are weak, but hardly a change leaves inode, time and length as they were.
    ///
    /// # Errors
    /// As for [`open`].
    pub fn open_cached(
        &self,
        url: &str,
        cache: Cache,
    ) -> Result<DiskCache<Arc<dyn BlockSource>>, SourceError> {
        let address = Address::parse(url)?;
        let settings = self.settings_for(&address)?;
        let is_file = address.scheme == Scheme::File;
        let Dressed { source, scope } = self.dressed(address, settings)?;
        let cached = DiskCache::new(source, cache).scope(scope);
        Ok(if is_file { cached.weak(true) } else { cached })
    }

    /// Makes ready what the first request to an S3 without options of its own has to make: the client, with
    /// settings of the environment and trusted certificates. Takes some ten milliseconds, and more where
    /// the region has to be asked for. What is wrong with them is told at the first request.
    #[cfg(feature = "s3")]
    pub async fn warm_up_s3(&self) {
        let _ = self.aws(&self.settings).s3().await;
    }

    fn open_named_server(&self, server: &str) -> Result<Arc<dyn BlockSource>, SourceError> {
        let refuse = |reason: String| SourceError::Permanent {
            object: "server address".to_owned(),
            reason,
            cause: None,
        };
        let server = ServerAddress::parse(server).map_err(refuse)?;
        let url = server.url.clone().ok_or_else(|| {
            refuse("it names no object: add ?url= with its address, percent-encoded".to_owned())
        })?;
        let address = Address::parse(&url)?;
        if let Some(name) = self.unknown_to_servers() {
            return Err(address.refuse(format!(
                "{name} is set here, and a block server reads with its own settings: set it there, \
                 or open the object's own address"
            )));
        }
        let settings = self.settings_for(&address)?;
        self.open_served(&server, address, settings)
    }

    /// The object as a block server reads it.
    fn open_served(
        &self,
        server: &ServerAddress,
        address: Address,
        settings: Settings,
    ) -> Result<Arc<dyn BlockSource>, SourceError> {
        let token = server.token().map_err(|why| address.refuse(why))?;
        let key = (server.place.clone(), token);
        let link = self.with_shared(|shared| match shared.links.get(&key) {
            Some(link) => link.clone(),
            None => {
                let link = Link::new(key.0.clone(), key.1.clone());
                keep(&mut shared.links, key, &link);
                link
            }
        });
        let retry = settings.retry.clone();
        let served = Served::new(&address.shown, &address.whole, link)?;
        let served = match server.fallback {
            true => served.fallback(self.dressed(address, settings)?.source),
            false if retry.attempts_max == 1 => served,
            // A server that is started anew takes longer than all attempts at one that is there. Each waits
            // for it, and ends before it would be taken for one that is silent.
            false => served.patience((retry.stall / 5 * 4).min(SERVER_WAIT)),
        };
        Ok(Arc::new(Retry::with(served, retry)))
    }

    fn dressed(&self, address: Address, settings: Settings) -> Result<Dressed, SourceError> {
        match address.scheme {
            Scheme::File => {
                let leaf = Local::new(address.file);
                let leaf = match &self.allow {
                    Some(list) => leaf.within(list.folders().to_vec()),
                    None => leaf,
                };
                let source = Arc::new(Counted::new(leaf, self.traffic.clone()));
                Ok(Dressed { source, scope: String::new() })
            }
            Scheme::Http => self.open_http(address, settings),
            Scheme::S3 => self.open_s3(address, settings),
            Scheme::Gs | Scheme::Az => self.open_store(address, settings),
        }
    }

    /// Bucket, key and clients of an `s3` address, as [`open`](Options::open) would read it with:
    /// for programs that write objects, too. The clients do not retry.
    ///
    /// # Errors
    /// As for [`open`], and for an address of another kind.
    #[cfg(feature = "s3")]
    pub fn s3_place(&self, url: &str) -> Result<(String, String, Aws), SourceError> {
        let address = Address::parse(url)?;
        if address.scheme != Scheme::S3 {
            return Err(address.refuse("this is no address like s3://bucket/key".to_owned()));
        }
        let settings = self.settings_for(&address)?;
        let (bucket, key) = address.bucket_and_key()?;
        Ok((bucket, key, self.aws(&settings)))
    }

    /// The clients and the patience for the bucket of an `s3` address, whatever its key.
    #[cfg(feature = "s3")]
    pub(crate) fn s3_bucket(&self, url: &str) -> Result<(Aws, RetryPolicy), SourceError> {
        let address = Address::parse(url)?;
        let settings = self.settings_for(&address)?;
        Ok((self.aws(&settings), settings.retry))
    }

    /// The same settings, with connections of its own: for another runtime.
    pub(crate) fn apart(&self) -> Options {
        Options { shared: Arc::default(), ..self.clone() }
    }

    /// Whether there is no list of what is allowed.
    pub(crate) fn allows_all(&self) -> bool {
        self.allow.is_none()
    }

    /// What was set here, and over it what the address says.
    fn settings_for(&self, address: &Address) -> Result<Settings, SourceError> {
        let mut settings = self.settings.clone();
        let given = &address.options;
        if let Some(list) = &self.allow
            && address.scheme != Scheme::File
        {
            list.check(&address.whole).map_err(|why| address.refuse(why))?;
        }
        for (n, (name, value)) in given.iter().enumerate() {
            if self.allow.is_some() && !allow::is_harmless(name) {
                return Err(address.refuse(format!("the option {name:?} is not allowed here")));
            }
            if given[..n].iter().any(|(earlier, _)| earlier == name) {
                return Err(address.refuse(format!("the option {name:?} is given twice")));
            }
            settings.set(address.scheme, name, value).map_err(|why| address.refuse(why))?;
        }
        Ok(settings)
    }

    #[cfg(feature = "http")]
    fn open_http(&self, address: Address, settings: Settings) -> Result<Dressed, SourceError> {
        let stall = settings.retry.stall;
        let options = ClientOptions {
            ca: settings.ca.clone(),
            first_byte: stall,
            stall,
            ..ClientOptions::default()
        };
        let kept = self.with_shared(|shared| shared.http.get(&options).cloned());
        let client = match kept {
            Some(client) => client,
            None => {
                let client = Client::new(&options)?;
                self.with_shared(|shared| keep(&mut shared.http, options, &client));
                client
            }
        };
        let mut leaf = Http::new(&address.path, client, self.credentials.clone())?;
        if let Some(list) = &self.allow {
            leaf = leaf.within(list.clone());
        }
        let host = host_of(leaf.name());
        let scope = query_of(&address.path);
        Ok(self.wear(leaf, host, settings, scope))
    }

    #[cfg(not(feature = "http"))]
    fn open_http(&self, address: Address, _: Settings) -> Result<Dressed, SourceError> {
        Err(address.refuse("this program was built without the feature `http`".to_owned()))
    }

    #[cfg(feature = "s3")]
    fn open_s3(&self, address: Address, settings: Settings) -> Result<Dressed, SourceError> {
        let (bucket, key) = address.bucket_and_key()?;
        let aws = self.aws(&settings);
        let own = S3Options {
            version_id: settings.version_id.clone(),
            requester_pays: settings.requester_pays,
            first_byte: settings.retry.stall,
            stall: settings.retry.stall,
        };
        let gate = format!("s3://{bucket}");
        let leaf = S3::new(bucket, key, aws, own)?;
        // Buckets of different services may have the same name.
        let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
        let endpoint = settings.endpoint.clone();
        let endpoint = endpoint.or_else(|| variables.iter().find_map(|name| env::var(name).ok()));
        Ok(self.wear(leaf, gate, settings, endpoint.unwrap_or_default()))
    }

    /// The clients for these settings, made once.
    #[cfg(feature = "s3")]
    fn aws(&self, settings: &Settings) -> Aws {
        let options = AwsOptions {
            region: settings.region.clone(),
            profile: settings.profile.clone(),
            endpoint: settings.endpoint.clone(),
            path_style: settings.path_style,
            anonymous: settings.anonymous,
            ca: settings.ca.clone(),
            ..AwsOptions::default()
        };
        self.with_shared(|shared| match shared.aws.get(&options) {
            Some(aws) => aws.clone(),
            None => {
                let aws = Aws::new(options.clone());
                keep(&mut shared.aws, options, &aws);
                aws
            }
        })
    }

    #[cfg(not(feature = "s3"))]
    fn open_s3(&self, address: Address, _: Settings) -> Result<Dressed, SourceError> {
        Err(address.refuse("this program was built without the feature `s3`".to_owned()))
    }

    #[cfg(any(feature = "gs", feature = "azure"))]
    fn open_store(&self, address: Address, settings: Settings) -> Result<Dressed, SourceError> {
        let (bucket, key) = address.bucket_and_key()?;
        let gate = format!("{}://{bucket}", address.scheme.text());
        let leaf = match address.scheme {
            #[cfg(feature = "gs")]
            Scheme::Gs => crate::store::google(&bucket, &key, settings.anonymous)?,
            #[cfg(feature = "azure")]
            Scheme::Az => {
                let account = settings.account.as_deref();
                crate::store::azure(&bucket, &key, account, settings.anonymous)?
            }
            #[cfg(not(all(feature = "gs", feature = "azure")))]
            _ => return Err(address.without_feature()),
            #[cfg(all(feature = "gs", feature = "azure"))]
            _ => unreachable!("only gs and az addresses come here"),
        };
        let stall = settings.retry.stall;
        let scope = settings.account.clone().unwrap_or_default();
        Ok(self.wear(leaf.patience(stall, stall), gate, settings, scope))
    }

    #[cfg(not(any(feature = "gs", feature = "azure")))]
    fn open_store(&self, address: Address, _: Settings) -> Result<Dressed, SourceError> {
        Err(address.without_feature())
    }

    /// The standard wrappers, in their order.
    #[cfg(any(feature = "http", feature = "s3", feature = "gs", feature = "azure"))]
    fn wear(
        &self,
        leaf: impl BlockSource,
        server: String,
        settings: Settings,
        scope: String,
    ) -> Dressed {
        let Settings { endpoint, limit, .. } = settings;
        let key = GateKey { server, endpoint, limit };
        let gate = self.with_shared(|shared| match shared.gates.get(&key) {
            Some(gate) => gate.clone(),
            None => {
                let fresh = Gate::new(&key.server, key.limit.clone());
                keep(&mut shared.gates, key, &fresh);
                fresh
            }
        });
        let counted = Counted::new(leaf, self.traffic.clone());
        let retry = settings.retry;
        let source: Arc<dyn BlockSource> = match settings.hedge {
            true => Arc::new(Retry::with(Limit::new(Hedge::new(counted), gate), retry)),
            false => Arc::new(Retry::with(Limit::new(counted, gate), retry)),
        };
        Dressed { source, scope }
    }

    fn with_shared<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn keep<K: Eq + std::hash::Hash, V: Clone>(kept: &mut HashMap<K, V>, key: K, value: &V) {
    if kept.len() < SHARED_MAX {
        kept.insert(key, value.clone());
    }
}

/// `http://host:port` of a source's name.
#[cfg(feature = "http")]
fn host_of(name: &str) -> String {
    let path = name.find("://").map_or(0, |at| at + 3);
    let end = name[path..].find('/').map_or(name.len(), |at| path + at);
    name[..end].to_owned()
}

/// The query of an address without what signs it: the same object signed anew is the same object.
#[cfg(feature = "http")]
fn query_of(url: &str) -> String {
    const SIGNING: [&str; 8] = [
        "x-amz-",
        "x-goog-",
        "signature=",
        "sig=",
        "expires=",
        "awsaccesskeyid=",
        "googleaccessid=",
        "key-pair-id=",
    ];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let signs = |part: &str| {
        let part = part.to_ascii_lowercase();
        SIGNING.iter().any(|name| part.starts_with(name))
    };
    let parts: Vec<&str> = query.split('&').filter(|part| !signs(part)).collect();
    parts.join("&")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    File,
    Http,
    S3,
    Gs,
    Az,
}

impl Scheme {
    fn text(self) -> &'static str {
        match self {
            Scheme::File => "file",
            Scheme::Http => "http",
            Scheme::S3 => "s3",
            Scheme::Gs => "gs",
            Scheme::Az => "az",
        }
    }
}

/// An address taken apart. No secrets in `shown`.
#[derive(Debug)]
struct Address {
    scheme: Scheme,
    /// `bucket/key`, still percent-encoded; or the whole URL without its fragment; or a path as it
    /// was written.
    path: String,
    /// The path of a file, whose name need not be text.
    file: PathBuf,
    options: Vec<(String, String)>,
    /// The address as it was given.
    whole: String,
    shown: String,
}

impl Address {
    fn parse(url: &str) -> Result<Address, SourceError> {
        let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme))
        else {
            return Address::bare_path(url);
        };
        let known = match scheme.to_ascii_lowercase().as_str() {
            "file" => Scheme::File,
            "http" | "https" => Scheme::Http,
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            _ => {
                return Err(SourceError::Permanent {
                    object: format!("{scheme}://..."),
                    reason: "there is no source for such addresses; there are s3, http, https, \
                             file, gs, az, and paths"
                        .to_owned(),
                    cause: None,
                });
            }
        };
        let shown = match known {
            // What follows may hold a password, and a query a signature.
            Scheme::Http => format!("{scheme}://{}", host_and_path(rest)),
            // A `#` is part of a key.
            _ => format!("{scheme}://{}", without_user(rest.split('?').next().unwrap_or(""))),
        };
        let mut address = Address {
            scheme: known,
            path: String::new(),
            file: PathBuf::new(),
            options: Vec::new(),
            whole: url.to_owned(),
            shown,
        };
        let (path, options) = match known {
            Scheme::Http => match url.split_once('#') {
                None => (url, ""),
                Some((url, fragment)) => match fragment.strip_prefix("extmem:") {
                    Some(options) => (url, options),
                    None => {
                        let why = "a fragment means nothing here, unless it holds options as in \
                                   #extmem:retries=3";
                        return Err(address.refuse(why.to_owned()));
                    }
                },
            },
            _ => rest.split_once('?').unwrap_or((rest, "")),
        };
        address.options = encoding::options(options).map_err(|why| address.refuse(why))?;
        address.path = path.to_owned();
        match known {
            Scheme::File => address.file = address.file_path(path)?,
            // Some programs take keys here. A bucket's name has no @.
            Scheme::S3 | Scheme::Gs | Scheme::Az if without_user(path) != path => {
                let why = "an address holds no credentials: set them in the environment, such as \
                           AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                return Err(address.refuse(why.to_owned()));
            }
            Scheme::S3 | Scheme::Gs | Scheme::Az | Scheme::Http => {}
        }
        Ok(address)
    }

    fn bare_path(path: &str) -> Result<Address, SourceError> {
        let text = path.to_owned();
        let address = Address {
            scheme: Scheme::File,
            path: text.clone(),
            file: PathBuf::from(path),
            options: Vec::new(),
            whole: text.clone(),
            shown: text,
        };
        match path.is_empty() || path.contains('\0') {
            true => Err(address.refuse("this is no path".to_owned())),
            false => Ok(address),
        }
    }

    /// The path of `file://` + `rest`: absolute, on this machine.
    fn file_path(&self, rest: &str) -> Result<PathBuf, SourceError> {
        let path = rest.strip_prefix("localhost").filter(|rest| rest.starts_with('/'));
        let path = percent_decoded_bytes(path.unwrap_or(rest));
        let path = path.filter(|path| path.starts_with(b"/") && !path.contains(&0));
        let path = path.ok_or_else(|| {
            self.refuse("a file's address is file:///absolute/path, percent-encoded".to_owned())
        })?;
        Ok(PathBuf::from(OsString::from_vec(path)))
    }

    #[cfg(any(feature = "s3", feature = "gs", feature = "azure"))]
    fn bucket_and_key(&self) -> Result<(String, String), SourceError> {
        let (bucket, key) = self.path.split_once('/').unwrap_or((&self.path, ""));
        let Some(key) = encoding::percent_decoded(key) else {
            let why = "the key is not percent-encoded UTF-8; write %25 for a percent sign";
            return Err(self.refuse(why.to_owned()));
        };
        if bucket.is_empty() || key.is_empty() {
            let scheme = self.scheme.text();
            return Err(self.refuse(format!("an object's address is {scheme}://bucket/key")));
        }
        Ok((bucket.to_owned(), key))
    }

    fn refuse(&self, reason: String) -> SourceError {
        SourceError::Permanent { object: self.shown.clone(), reason, cause: None }
    }

    #[cfg_attr(all(feature = "gs", feature = "azure"), allow(dead_code))]
    fn without_feature(&self) -> SourceError {
        let feature = if self.scheme == Scheme::Az { "azure" } else { "gs" };
        self.refuse(format!("this program was built without the feature `{feature}`"))
    }
}

pub(crate) fn is_scheme(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Host and path of an address, without user and query.
pub(crate) fn host_and_path(rest: &str) -> &str {
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    without_user(&rest[..end])
}

/// The same of an address that has no query.
fn without_user(rest: &str) -> &str {
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => &rest[at + 1..],
        None => rest,
    }
}

impl Settings {
    /// Takes one option of an address.
    fn set(&mut self, scheme: Scheme, name: &str, value: &str) -> Result<(), String> {
        use Scheme::{Az, File, Gs, Http, S3};
        let remote: &[Scheme] = &[Http, S3, Gs, Az];
        let allowed: &[Scheme] = match name {
            "region" | "profile" | "endpoint" | "path_style" | "requester_pays" | "version_id" => {
                &[S3]
            }
            "anonymous" => &[S3, Gs, Az],
            "account" => &[Az],
            "ca" => &[S3, Http],
            "retries" | "deadline_ms" | "stall_ms" | "requests_max" | "hedge" | "cache" => remote,
            _ => return Err(format!("there is no option {name:?}")),
        };
        if scheme == File || !allowed.contains(&scheme) {
            return Err(format!("the option {name:?} is not for {} addresses", scheme.text()));
        }
        let text = || match value.is_empty() {
            true => Err(format!("the option {name:?} needs a value")),
            false => Ok(Some(value.to_owned())),
        };
        match name {
            "region" => self.region = text()?,
            "profile" => self.profile = text()?,
            "endpoint" => self.endpoint = text()?,
            "path_style" => self.path_style = Some(truth(name, value)?),
            "requester_pays" => self.requester_pays = truth(name, value)?,
            "version_id" => self.version_id = text()?,
            "anonymous" => self.anonymous = truth(name, value)?,
            "account" => self.account = text()?,
            "ca" => self.ca = text()?.map(PathBuf::from),
            "retries" => self.retry.attempts_max = number(name, value, 0, 100)? as u32 + 1,
            "deadline_ms" => {
                self.retry.deadline = Duration::from_millis(number(name, value, 1, DAY_MS)?);
            }
            "stall_ms" => self.retry.stall = Duration::from_millis(number(name, value, 1, DAY_MS)?),
            "requests_max" => {
                self.limit.requests_max = number(name, value, 1, 65_536)? as u32;
            }
            "hedge" => self.hedge = truth(name, value)?,
            "cache" => {
                self.cache = match value {
                    "off" => CacheChoice::Nowhere,
                    _ => CacheChoice::Directory(text()?.unwrap_or_default().into()),
                };
            }
            _ => unreachable!("every allowed name was matched"),
        }
        Ok(())
    }
}

const DAY_MS: u64 = 24 * 3600 * 1000;

fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("the option {name}={value:?} must be true or false")),
    }
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    // `u64::from_str` would let a sign pass.
    let digits = Some(value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|value| value.parse().ok());
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("the option {name}={value:?} must be from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_taken_apart() {
        let cases = [
            ("/a/b c?d#e", Scheme::File, "/a/b c?d#e"),
            ("relative/x:y", Scheme::File, "relative/x:y"),
            ("file:///a/b%20c", Scheme::File, "/a/b%20c"),
            ("s3://b/k/%3F%25?region=x", Scheme::S3, "b/k/%3F%25"),
            ("S3://b/../k//x", Scheme::S3, "b/../k//x"),
            ("http://h/p?q=1", Scheme::Http, "http://h/p?q=1"),
            ("https://h/p?q=1#extmem:retries=2", Scheme::Http, "https://h/p?q=1"),
            ("gs://b/k", Scheme::Gs, "b/k"),
            ("az://b/k%20?account=me", Scheme::Az, "b/k%20"),
        ];
        for (url, scheme, path) in cases {
            let address = Address::parse(url).expect(url);
            assert_eq!((address.scheme, address.path.as_str()), (scheme, path), "{url}");
        }
    }

    #[test]
    fn files_have_any_name() {
        let cases: [(&str, &[u8]); 6] = [
            ("/a/b c?d#e", b"/a/b c?d#e"),
            ("file:///a/b%20c", b"/a/b c"),
            ("file://localhost/a", b"/a"),
            ("FILE:///a%23b%3Fc", b"/a#b?c"),
            ("file:///latin/%E4", b"/latin/\xe4"),
            ("file:///100%25", b"/100%"),
        ];
        for (url, path) in cases {
            let address = Address::parse(url).expect(url);
            assert_eq!(address.file.into_os_string().into_vec(), path, "{url}");
        }
        for url in ["file:///a%00b", "file:///a%", "file://a", "a\0b"] {
            assert!(Address::parse(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn what_cannot_be_opened_says_why_and_keeps_secrets() {
        let cases = [
            ("", "no path"),
            ("ftp://host/x", "no source for such addresses"),
            ("file://other/x", "file:///absolute/path"),
            ("file:///x?retries=1", "not for file addresses"),
            ("s3://bucket", "s3://bucket/key"),
            ("s3:///key", "s3://bucket/key"),
            ("s3://b/k?regoin=x", "no option \"regoin\""),
            ("s3://b/k?region=", "needs a value"),
            ("s3://b/k?path_style=maybe", "true or false"),
            ("s3://b/k?retries=1000", "from 0 to 100"),
            ("s3://b/k?stall_ms=0", "from 1 to"),
            ("s3://b/k?deadline_ms=5s", "from 1 to"),
            ("s3://b/k?retries=%2B5", "from 0 to 100"),
            ("s3://b/k?region=x&anonymous&region=x", "\"region\" is given twice"),
            ("s3://b/k?region=x&re%67ion=y", "\"region\" is given twice"),
            ("s3://b/k?cache=", "needs a value"),
            ("file:///x?cache=/tmp/x", "not for file addresses"),
            ("s3://b/100%", "percent-encoded"),
            ("http://h/x#anchor", "fragment"),
            ("http://h/x#extmem:region=y", "not for http addresses"),
            ("http://u:secret@h/x?sig=secret#extmem:what", "no option \"what\""),
            ("s3://key:secret@bucket/x", "AWS_ACCESS_KEY_ID"),
            ("s3://key:secret@bucket/x?sig=secret", "no credentials"),
            ("gs://key:secret@bucket/x", "no credentials"),
            ("file://u:secret@host/x", "file:///absolute/path"),
        ];
        for (url, why) in cases {
            let error = open(url).map(drop).expect_err(url);
            assert!(matches!(error, SourceError::Permanent { .. }), "{url}: {error}");
            assert!(error.to_string().contains(why), "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn options_of_an_address_come_before_those_that_were_set() {
        let mut settings = Options::default().region("set".to_owned()).settings;
        settings.set(Scheme::S3, "region", "said").expect("an option");
        settings.set(Scheme::S3, "retries", "0").expect("an option");
        settings.set(Scheme::S3, "anonymous", "true").expect("an option");
        assert_eq!(settings.region.as_deref(), Some("said"));
        assert_eq!(settings.retry.attempts_max, 1);
        assert!(settings.anonymous);
    }

    #[test]
    fn an_address_that_says_how_many_requests_leaves_the_other_limits() {
        let policy = LimitPolicy { requests_start: 3, queue_max: 5, ..LimitPolicy::default() };
        let mut settings = Options::default().limit(policy.clone()).settings;
        settings.set(Scheme::S3, "requests_max", "9").expect("an option");
        assert_eq!(settings.limit, LimitPolicy { requests_max: 9, ..policy });
    }

    #[cfg(feature = "s3")]
    #[test]
    fn gates_are_shared_by_those_who_mean_the_same_server_and_limit() {
        let options = Options::default();
        let urls = [
            "s3://bucket/a",
            "s3://bucket/b?retries=1",
            "s3://bucket/a?requests_max=2",
            "s3://bucket/a?endpoint=http://127.0.0.1:1",
            "s3://other/a",
        ];
        for url in urls {
            options.open(url).expect(url);
        }
        let mut limits: Vec<_> =
            options.with_shared(|shared| shared.gates.values().map(Gate::allowed).collect());
        limits.sort_unstable();
        assert_eq!(limits, [2, 64, 64, 64], "a limit that was asked for is kept");
    }

    #[cfg(feature = "s3")]
    #[test]
    fn s3_places_are_those_that_are_read() {
        let options = Options::default();
        let url = "s3://bucket/a%20key?endpoint=http://127.0.0.1:1&region=r";
        let (bucket, key, aws) = options.s3_place(url).expect("a place");
        assert_eq!((&bucket[..], &key[..]), ("bucket", "a key"));
        assert_eq!(aws.options().region.as_deref(), Some("r"));
        for url in ["http://h/x", "/a/path", "s3://bucket", "s3://b/k?colour=red"] {
            assert!(options.s3_place(url).is_err(), "{url}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_query_without_its_signature() {
        let cases = [
            ("http://h/p", ""),
            ("http://h/p?id=5&part=2", "id=5&part=2"),
            ("http://h/p?id=5&X-Amz-Signature=abc&X-Amz-Date=1", "id=5"),
            ("http://h/p?Expires=1&Signature=2&designs=3", "designs=3"),
        ];
        for (url, expected) in cases {
            assert_eq!(query_of(url), expected, "{url}");
        }
    }

    #[cfg(feature = "s3")]
    #[test]
    fn names_are_the_addresses_without_options() {
        let source = open("s3://bucket/a%20key?anonymous&region=r").expect("a source");
        assert_eq!(source.name(), "s3://bucket/a key");
    }

    #[cfg(feature = "azure")]
    #[test]
    fn containers_of_azure_are_opened_by_account() {
        let source = open("az://box/a%20key?anonymous&account=me").expect("a source");
        assert_eq!(source.name(), "az://box/a key");
        let error = open("az://box?anonymous&account=me").map(drop).expect_err("no key");
        assert!(error.to_string().contains("az://"), "{error}");
    }
}
