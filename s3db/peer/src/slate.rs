//! The operations by SlateDB 0.18: settings as they are by default, its scans with as much read ahead
//! as ours have.

use std::sync::Arc;

use slatedb::{
    Db, WriteBatch,
    config::{FlushOptions, FlushType, ScanOptions},
};

use crate::{
    Peer,
    adapter::Adapter,
    model::Store,
    told,
    workload::{PAYLOAD_BYTES, key},
};

/// Records of a batch that fills the database.
const FILL: u32 = 500;
/// A put is durable with the next flush of the log: at most 100 ms later.
pub(crate) struct Waiting {
    db: Db,
}

/// A put asks for a flush of the log.
pub(crate) struct AtOnce(Waiting);

impl Peer for Waiting {
    async fn open(store: &Arc<Store>) -> Result<Waiting, String> {
        let db = Db::open("db", Arc::new(Adapter(store.clone()))).await.map_err(told)?;
        Ok(Waiting { db })
    }

    async fn recover(store: &Arc<Store>) -> Result<Waiting, String> {
        // To open is to replay the log.
        Waiting::open(store).await
    }

    async fn fill(&self, records: u32) -> Result<(), String> {
        let mut number = 0;
        while number < records {
            let mut batch = WriteBatch::new();
            for _ in 0..FILL.min(records - number) {
                batch.put(key(number), [b'x'; PAYLOAD_BYTES]);
                number += 1;
            }
            self.db.write(batch).await.map_err(told)?;
        }
        // What is in tables is not in the log only: as our records are on their pages.
        let options = FlushOptions { flush_type: FlushType::MemTable };
        self.db.flush_with_options(options).await.map_err(told)
    }

    async fn put(&self, number: u32) -> Result<(), String> {
        let written = self.db.put(key(number), [b'x'; PAYLOAD_BYTES]).await.map_err(told)?;
        written.await_durable().await.map_err(told)
    }

    async fn get(&self, number: u32) -> Result<bool, String> {
        let found = self.db.get(key(number)).await.map_err(told)?;
        Ok(found.is_some_and(|value| value.len() == PAYLOAD_BYTES))
    }

    async fn scan(&self) -> Result<u32, String> {
        // 64 of our leaves of 100 KB.
        let options = ScanOptions {
            read_ahead_bytes: 6_400_000,
            max_fetch_tasks: 64,
            ..ScanOptions::default()
        };
        let mut records = self.db.scan_with_options(.., &options).await.map_err(told)?;
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

impl Peer for AtOnce {
    async fn open(store: &Arc<Store>) -> Result<AtOnce, String> {
        Waiting::open(store).await.map(AtOnce)
    }

    async fn recover(store: &Arc<Store>) -> Result<AtOnce, String> {
        Waiting::recover(store).await.map(AtOnce)
    }

    async fn fill(&self, records: u32) -> Result<(), String> {
        self.0.fill(records).await
    }

    async fn put(&self, number: u32) -> Result<(), String> {
        let written = self.0.db.put(key(number), [b'x'; PAYLOAD_BYTES]).await.map_err(told)?;
        self.0.db.flush().await.map_err(told)?;
        written.await_durable().await.map_err(told)
    }

    async fn get(&self, number: u32) -> Result<bool, String> {
        self.0.get(number).await
    }

    async fn scan(&self) -> Result<u32, String> {
        self.0.scan().await
    }

    async fn close(self) -> Result<(), String> {
        self.0.close().await
    }
}
