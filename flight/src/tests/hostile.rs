//! Whatever a client sends, it gets one clear error, and the server goes on: a fuzz with fixed seeds, and the known tricks.

use arrow::array::{DictionaryArray, RecordBatchOptions};
use arrow::datatypes::{Field, Int32Type};
use arrow_flight::encode::DictionaryHandling;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};

use super::*;

/// A small generator of our own, so that a failing seed can be run again anywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    /// Damages bytes in one of the ways that transports and bad clients do.
    fn damage(&mut self, bytes: &Bytes) -> Bytes {
        let mut copy = bytes.to_vec();
        match self.below(6) {
            0 => copy.truncate(self.below(copy.len() + 1)),
            1 => copy.extend((0..self.below(64)).map(|n| n as u8)),
            2 if !copy.is_empty() => {
                // A 32-bit word that claims a lot: an offset, a length, a count.
                let at = self.below(copy.len()) & !3;
                let claim = [u32::MAX, i32::MAX as u32, 1 << 30, 0x8000_0000][self.below(4)].to_le_bytes();
                for (byte, new) in copy[at..].iter_mut().zip(claim) {
                    *byte = new;
                }
            }
            3 if !copy.is_empty() => {
                let (from, to) = (self.below(copy.len()), self.below(copy.len()));
                copy.swap(from, to);
            }
            4 => copy.clear(),
            _ => {
                for _ in 0..=self.below(8) {
                    if !copy.is_empty() {
                        let at = self.below(copy.len());
                        copy[at] ^= 1 << self.below(8);
                    }
                }
            }
        }
        copy.into()
    }
}

fn sample() -> RecordBatch {
    let tags: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
    RecordBatch::try_from_iter_with_nullable(vec![
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef, true),
        ("s", Arc::new(StringArray::from(vec![Some("x"), None, Some("zz"), Some("")])) as ArrayRef, true),
        ("d", Arc::new(tags) as ArrayRef, true),
    ])
    .unwrap()
}

/// The messages of an upload in all the forms that clients use: plain, compressed, with dictionaries.
async fn forms(table: &str) -> Vec<Vec<FlightData>> {
    let command = ingest_into(table, TableNotExistOption::Create, TableExistsOption::Append);
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let mut all = Vec::new();
    for compression in [None, Some(arrow_ipc::CompressionType::ZSTD), Some(arrow_ipc::CompressionType::LZ4_FRAME)] {
        let messages = FlightDataEncoderBuilder::new()
            .with_options(IpcWriteOptions::default().try_with_compression(compression).unwrap())
            .with_dictionary_handling(DictionaryHandling::Resend)
            .with_flight_descriptor(Some(descriptor.clone()))
            .build(futures::stream::iter([Ok(sample()), Ok(sample())]));
        all.push(messages.try_collect().await.unwrap());
    }
    all
}

/// An error that blames the message, not the server.
fn is_clear(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented | Code::NotFound)
        && !status.message().is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_uploads_are_refused_whole() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let mut loaded = 0;
    for (number, whole) in forms("t").await.into_iter().enumerate() {
        loaded += count(put(&mut client, whole.clone()).await.unwrap());
        for seed in 1..=150_u64 {
            let mut noise = Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + number as u64);
            let mut messages = whole.clone();
            let at = noise.below(messages.len());
            match noise.below(4) {
                0 => messages[at].data_header = noise.damage(&messages[at].data_header),
                1 => messages[at].data_body = noise.damage(&messages[at].data_body),
                2 => {
                    messages.remove(at);
                }
                _ => {
                    let again = messages[at].clone();
                    messages.push(again);
                }
            }
            if messages.first().is_none_or(|first| first.flight_descriptor.is_none()) {
                continue;
            }
            match put(&mut client, messages).await {
                // Some damage only changes values, or rows.
                Ok(answer) => loaded += count(answer),
                Err(status) => assert!(is_clear(&status), "form {number}, seed {seed}: {status:?}"),
            }
        }
    }
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, loaded, "nothing of a refused upload is left");
    assert!(server.engine.queries().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_commands_are_refused() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id BIGINT)").await;
    let info = client.execute("SELECT id FROM t".to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
    let commands: Vec<Bytes> = vec![
        CommandStatementQuery { query: "SELECT 1 AS n".to_owned(), transaction_id: None }
            .as_any()
            .encode_to_vec()
            .into(),
        CommandGetTables { include_schema: true, ..Default::default() }.as_any().encode_to_vec().into(),
        CommandPreparedStatementQuery { prepared_statement_handle: Bytes::from_static(&[7; 24]) }
            .as_any()
            .encode_to_vec()
            .into(),
    ];
    for seed in 1..=300_u64 {
        let mut noise = Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let which = noise.below(commands.len());
        let cmd = noise.damage(&commands[which]);
        let request = with_token(&client, FlightDescriptor::new_cmd(cmd));
        if let Err(status) = client.inner_mut().get_flight_info(request).await {
            assert!(is_clear(&status), "seed {seed}: {status:?}");
        }
        let request = with_token(&client, Ticket { ticket: noise.damage(&ticket) });
        let answer = match client.inner_mut().do_get(request).await {
            Ok(stream) => stream.into_inner().try_collect::<Vec<FlightData>>().await.map(|_| ()),
            Err(status) => Err(status),
        };
        if let Err(status) = answer {
            assert!(is_clear(&status), "ticket, seed {seed}: {status:?}");
        }
    }
    // A ticket whose parameters do not fit its statement, or are no parameters.
    let mut forged = crate::ticket::Ticket::new(uuid::Uuid::new_v4(), crate::ticket::Kind::Query, 1);
    forged.statement = "SELECT id FROM t WHERE id = $1".to_owned();
    forged.set_moment(Some(sql::Moment { snapshot: server.engine.store().now(), now_us: 0 }));
    forged.parameters = crate::ticket::encode_parameters(&params(vec![("", ints(&[1])), ("", ints(&[2]))])).unwrap();
    let request = with_token(&client, Ticket { ticket: forged.encode_any() });
    assert_eq!(client.inner_mut().do_get(request).await.unwrap_err().code(), Code::InvalidArgument);
    forged.parameters[0].data_header = Bytes::from_static(b"\xff\xff\xff\xff");
    let request = with_token(&client, Ticket { ticket: forged.encode_any() });
    assert_eq!(client.inner_mut().do_get(request).await.unwrap_err().code(), Code::InvalidArgument);
    // `now()` out of every calendar.
    forged.parameters = Vec::new();
    forged.statement = "SELECT now() AS at".to_owned();
    forged.now_us = i64::MIN;
    let request = with_token(&client, Ticket { ticket: forged.encode_any() });
    assert_eq!(client.inner_mut().do_get(request).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_requests_are_refused() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    // A path of a hundred thousand names, a name of a megabyte, a statement of two megabytes that is no statement.
    let wide = FlightDescriptor::new_path(vec!["x".to_owned(); 100_000]);
    let long = FlightDescriptor::new_path(vec!["x".repeat(1 << 20)]);
    for (descriptor, code) in [(wide, Code::InvalidArgument), (long, Code::NotFound)] {
        let request = with_token(&client, descriptor);
        let error = client.inner_mut().get_flight_info(request).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.message().len() < 8192, "an error does not repeat a megabyte: {}", error.message().len());
    }
    for text in ["(".repeat(2 << 20), format!("SELECT {}", "1 + ".repeat(200_000)), "x".repeat(2 << 20)] {
        let error = status(client.execute(text, None).await.unwrap_err());
        assert!(is_clear(&error), "{:?}", error.code());
        assert!(error.message().len() < 8192);
    }
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_of_a_wrong_shape_are_refused() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await;
    let insert = prepare(&mut client, "INSERT INTO t VALUES (?, ?)", None).await.unwrap();
    let handle = &insert.prepared_statement_handle;
    let names: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let lists: ArrayRef = Arc::new(arrow::array::ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]));
    let wrong = [
        (params(vec![("", ints(&[1]))]), "1 values are bound"),
        (params(vec![("", ints(&[1])), ("", names.clone()), ("", ints(&[3]))]), "3 values are bound"),
        (params(vec![("", lists.clone()), ("", names.clone())]), "$1"),
        (params(vec![("", names.clone()), ("", names.clone())]), ""),
    ];
    for (batch, text) in wrong {
        let error = update_prepared(&mut client, handle, batch).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains(text), "{}", error.message());
    }
    // No rows, no columns, rows without columns.
    let none = params(vec![("", ints(&[1])), ("", names)]).slice(0, 0);
    assert_eq!(update_prepared(&mut client, handle, none).await.unwrap(), 0);
    let options = RecordBatchOptions::new().with_row_count(Some(5));
    let bare = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    let error = update_prepared(&mut client, handle, bare.clone()).await.unwrap_err();
    assert!(error.message().contains("none is bound"), "{}", error.message());
    // Nor are rows without columns loaded, whether there is a table or not.
    let ingest = async |client: &mut Client, table: &str| {
        let command = ingest_into(table, TableNotExistOption::Create, TableExistsOption::Append);
        put(client, upload(&command, vec![bare.clone()], bare.schema()).await).await
    };
    for table in ["t", "bare"] {
        let error = ingest(&mut client, table).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains("no columns"), "{error:?}");
    }
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dictionaries_grow_and_change() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let of = |words: Vec<&str>| {
        let words: DictionaryArray<Int32Type> = words.into_iter().collect();
        RecordBatch::try_from_iter(vec![("d", Arc::new(words) as ArrayRef)]).unwrap()
    };
    // Written by hand: a dictionary, rows, another one in its place or more of it, rows.
    let encode = async |table: &str, second: RecordBatch, handling| {
        let command = ingest_into(table, TableNotExistOption::Create, TableExistsOption::Append);
        let first = of(vec!["a", "b"]);
        let mut messages = upload(&command, vec![], first.schema()).await;
        let options = IpcWriteOptions::default().with_dictionary_handling(handling);
        let generator = IpcDataGenerator::default();
        let mut tracker = DictionaryTracker::new(false);
        let schema = generator.schema_to_bytes_with_dictionary_tracker(&first.schema(), &mut tracker, &options);
        messages[0].data_header = FlightData::from(schema).data_header;
        let mut compression = arrow_ipc::writer::CompressionContext::default();
        for batch in [first, second] {
            let (dictionaries, rows) = generator.encode(&batch, &mut tracker, &options, &mut compression).unwrap();
            messages.extend(dictionaries.into_iter().map(FlightData::from));
            messages.push(rows.into());
        }
        assert_eq!(messages.len(), 5, "two dictionaries");
        messages
    };
    use arrow_ipc::writer::DictionaryHandling as Handling;
    for (table, second, handling, wanted) in [
        ("replaced", of(vec!["c", "d", "c"]), Handling::Resend, "abccd"),
        ("extended", of(vec!["a", "b", "c"]), Handling::Delta, "aabbc"),
    ] {
        let mut messages = encode(table, second, handling).await;
        assert_eq!(count(put(&mut client, messages.clone()).await.unwrap()), 5, "{table}");
        let found = rows(&mut client, &format!("SELECT string_agg(d, '' ORDER BY d) AS all FROM {table}")).await;
        assert_eq!(texts(&found.unwrap(), "all"), [wanted]);
        // Rows whose dictionary never came.
        messages.remove(1);
        let error = put(&mut client, messages).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{table}: {error:?}");
        assert_eq!(number(&mut client, &format!("SELECT count(*) FROM {table}")).await, 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_the_wrong_shape_is_not_filled() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT NOT NULL)").await;
    let append = ingest_into("t", TableNotExistOption::Fail, TableExistsOption::Append);
    let names: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let wrong = [
        RecordBatch::try_from_iter(vec![("id", ints(&[1])), ("nom", Arc::clone(&names))]).unwrap(),
        RecordBatch::try_from_iter(vec![("id", Arc::clone(&names)), ("name", Arc::clone(&names))]).unwrap(),
        RecordBatch::try_from_iter(vec![("id", ints(&[1]))]).unwrap(),
        RecordBatch::try_from_iter(vec![("id", ints(&[1])), ("id", ints(&[2])), ("name", names)]).unwrap(),
    ];
    for (case, batch) in wrong.into_iter().enumerate() {
        let error = put(&mut client, upload(&append, vec![batch.clone()], batch.schema()).await).await.unwrap_err();
        let code = error.code();
        assert!(matches!(code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists), "{case}: {error:?}");
    }
    // Batches of another schema than was announced.
    let good = params(vec![("id", ints(&[1])), ("name", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]);
    let other = params(vec![("id", ints(&[1]))]);
    let mut messages = upload(&append, vec![good.clone()], good.schema()).await;
    let foreign = upload(&append, vec![other.clone()], other.schema()).await;
    messages[1] = foreign[1].clone();
    assert_eq!(put(&mut client, messages).await.unwrap_err().code(), Code::InvalidArgument);
    // A schema that nobody can store.
    let deep = (0..40).fold(DataType::Int32, |inner, _| DataType::List(Arc::new(Field::new("item", inner, true))));
    let schema = Arc::new(Schema::new(vec![Field::new("x", deep, true)]));
    let error = put(&mut client, upload(&append, vec![], schema).await).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 0);
}
