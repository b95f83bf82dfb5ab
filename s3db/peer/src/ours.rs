//! The operations by extmem-s3db: log backend s3-log, level atomic, settings as they are by default.

use std::sync::Arc;

use s3db::{
    Collection, Db, Key, Level, Options, Payload, Store as Database,
    cloud::{Cloud, embedded},
};

use crate::{
    Peer,
    model::Store,
    told,
    workload::{PAYLOAD_BYTES, key},
};

const COLLECTION: &str = "things";
/// Records of a transaction that fills the database.
const FILL: u32 = 500;

pub(crate) struct Ours {
    db: Db,
    of: Collection,
}

fn cloud(store: &Arc<Store>) -> Cloud {
    // Clock and randomness are this machine's; s3-log asks for no queue.
    Cloud { objects: store.clone(), ..embedded::memory(Arc::default()) }
}

fn payload() -> Result<Payload, String> {
    Payload::new(vec![b'x'; PAYLOAD_BYTES]).map_err(told)
}

fn key_of(number: u32) -> Result<Key, String> {
    Key::new(key(number)).map_err(told)
}

impl Peer for Ours {
    async fn open(store: &Arc<Store>) -> Result<Ours, String> {
        let options = Options::default();
        let cloud = cloud(store);
        let db = match Db::over(cloud.clone(), &options).await {
            Err(s3db::StoreError::NotFound(_)) => {
                let Options { settings, backend, shards, .. } = &options;
                Database::create(&cloud, settings, *backend, *shards).await.map_err(told)?;
                let db = Db::over(cloud, &options).await.map_err(told)?;
                db.create_collection(COLLECTION).await.map_err(told)?;
                db
            }
            db => db.map_err(told)?,
        };
        let of = db.collection(COLLECTION).await.map_err(told)?;
        Ok(Ours { db, of })
    }

    async fn recover(store: &Arc<Store>) -> Result<Ours, String> {
        let ours = Ours::open(store).await?;
        ours.db.store().sweep().await.map_err(told)?;
        Ok(ours)
    }

    async fn fill(&self, records: u32) -> Result<(), String> {
        let mut number = 0;
        while number < records {
            let mut txn = self.db.begin_at(Level::Basic);
            for _ in 0..FILL.min(records - number) {
                txn.put(&self.of, &key_of(number)?, payload()?).map_err(told)?;
                number += 1;
            }
            txn.commit().await.map_err(told)?;
            self.db.checkpoint().await.map_err(told)?;
        }
        Ok(())
    }

    async fn put(&self, number: u32) -> Result<(), String> {
        let mut txn = self.db.begin();
        txn.put(&self.of, &key_of(number)?, payload()?).map_err(told)?;
        txn.commit().await.map(drop).map_err(told)
    }

    async fn get(&self, number: u32) -> Result<bool, String> {
        let found = self.db.begin().read(&self.of, &key_of(number)?).await.map_err(told)?;
        Ok(found.is_some_and(|payload| payload.as_bytes().len() == PAYLOAD_BYTES))
    }

    async fn scan(&self) -> Result<u32, String> {
        let txn = self.db.begin();
        let mut records = txn.scan(&self.of);
        let mut found = 0;
        while records.next().await.map_err(told)?.is_some() {
            found += 1;
        }
        Ok(found)
    }

    async fn close(self) -> Result<(), String> {
        self.db.close().await.map_err(told)
    }
}
