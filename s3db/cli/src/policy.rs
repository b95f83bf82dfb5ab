//! `policy`: what AWS has to allow.

use s3db::{Address, CollectionKind, Right, Service, Wish, policy};

use crate::output::{Failure, Output, client, collection, open};

#[derive(clap::Args)]
#[command(after_help = "Rights:
  read     the records of the collections, and their indexes. Enforced by IAM for each collection.
           With --fresh also the log, and with --blobs also blobs: those of all collections
  write    read, and commit. Enforced for the database: the log is one for all collections, so who may
           commit to one may commit to all that are not curated. To one with isolation: to all of these.
           With --as, and s3-log, he is bound to one client: what he commits to collections that name other
           writers (s3db init --writers) is put aside by whoever keeps these
  propose  read, and propose changes of curated collections. Enforced for each
  curate   read, see proposals, approve and reject. Enforced for each
  keep     sweep what was committed to the pages of the collections. Who may do that may change these
           pages and delete what waits in the log, of any collection: for whom you trust

Collections with isolation share the sequencer: who may read one of them may read what was committed last to any, and
who may write to one may undo what was committed last to any.
Creating collections and indexes, gc, rekey and verify take all rights in the database.
A policy without --principal is for a user or a role, with it for the bucket, or, with --service sqs, for each
queue. Everything it does not name stays forbidden.

Examples:
  s3db policy s3://bucket/db --collection users --right read > reader.json
  s3db policy s3://bucket/db --collection users --right write --as 7
  s3db policy s3://bucket/db --collection prices --right propose
  s3db policy s3://bucket/db --collection a --collection b --right keep --principal arn:aws:iam::123456789012:role/keeper")]
pub(crate) struct Args {
    /// The database, in a bucket
    url: String,
    /// A collection. Can be given more than once
    #[arg(long = "collection", required = true)]
    collections: Vec<String>,
    /// read, write, propose, curate or keep
    #[arg(long)]
    right: Right,
    /// Let fresh reads look into the log, which has records of all collections
    #[arg(long)]
    fresh: bool,
    /// Let payloads be read that lie in blobs, of all collections
    #[arg(long)]
    blobs: bool,
    /// Who writes does so as this client alone (--client of every command): only its own log, lives and
    /// blobs are put. With queues messages can be sent in anybody's name
    #[arg(id = "acts_as", long = "as", value_name = "HEX", value_parser = client)]
    client: Option<u64>,
    /// An account of 12 digits, or the ARN of a user or role: for a policy of the bucket or of a queue
    #[arg(long)]
    principal: Option<String>,
    /// Only what is about s3, or sqs
    #[arg(long, value_parser = service)]
    service: Option<Service>,
}

fn service(name: &str) -> Result<Service, String> {
    match name {
        "s3" => Ok(Service::S3),
        "sqs" => Ok(Service::Sqs),
        _ => Err("s3 or sqs".to_owned()),
    }
}

pub(crate) async fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let told = |what: &str| Err(Failure::Told(what.to_owned()));
    let Address::Aws(place) = args.url.parse()? else {
        return told("policies are for databases in a bucket: s3://BUCKET/PREFIX");
    };
    let db = open(&args.url, output).await?;
    let mut collections = Vec::new();
    for name in &args.collections {
        let of = collection(&db, &args.url, name).await?;
        collections.push((name.clone(), CollectionKind::of(&of)));
    }
    let Args { right, fresh, blobs, client, .. } = *args;
    let wish = Wish { right, collections, fresh, blobs, client };
    let mut found = policy(&place.names(), &db.store().database(), &wish)?;
    if let Some(service) = args.service {
        found = found.of(service);
    }
    let other = found.of(Service::Sqs);
    if args.principal.is_some() && args.service.is_none() && !other.is_empty() {
        return told(
            "a policy of a bucket says nothing of queues: add --service s3, or --service sqs",
        );
    }
    if found.is_empty() {
        return told("the right needs nothing of this service");
    }
    println!("{}", found.to_json(args.principal.as_deref())?);
    output.close(db).await
}
