package lattice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.Date;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Types;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The JDBC driver against the server that LATTICE_JDBC_PORT names; test_jdbc.py starts it. */
class JdbcTest {
  private static final String URL =
      "jdbc:arrow-flight-sql://127.0.0.1:" + System.getenv("LATTICE_JDBC_PORT") + "/?useEncryption=false&user=admin&password=p:q";

  private static Connection connect() throws SQLException {
    return DriverManager.getConnection(URL);
  }

  private static List<String> column(ResultSet rows, String name) throws SQLException {
    List<String> values = new ArrayList<>();
    while (rows.next()) {
      values.add(rows.getString(name));
    }
    return values;
  }

  @Test
  void statements() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      assertEquals(0, statement.executeUpdate("CREATE TABLE j1 (id INT PRIMARY KEY, name TEXT, price NUMERIC(10,2), day DATE)"));
      assertEquals(2, statement.executeUpdate("INSERT INTO j1 VALUES (1, 'a', 1.50, DATE '2026-11-22'), (2, NULL, NULL, NULL)"));
      assertFalse(statement.execute("UPDATE j1 SET name = 'b' WHERE id = 2"));
      assertTrue(statement.execute("SELECT * FROM j1 ORDER BY id"));
      try (ResultSet rows = statement.executeQuery("SELECT * FROM j1 ORDER BY id")) {
        assertTrue(rows.next());
        assertEquals(1, rows.getInt("id"));
        assertEquals("a", rows.getString("name"));
        assertEquals(new BigDecimal("1.50"), rows.getBigDecimal("price"));
        assertEquals("2026-11-22", rows.getDate("day").toString());
        assertTrue(rows.next());
        assertEquals("b", rows.getString(2));
        assertNull(rows.getBigDecimal(3));
        assertTrue(rows.wasNull());
        assertFalse(rows.next());
        assertEquals(Types.INTEGER, rows.getMetaData().getColumnType(1));
        assertEquals(4, rows.getMetaData().getColumnCount());
      }
      assertEquals(1, statement.executeUpdate("DELETE FROM j1 WHERE id = 1"));
    }
  }

  @Test
  void parameters() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.executeUpdate("CREATE TABLE j2 (id INT PRIMARY KEY, name TEXT, price NUMERIC(10,2), day DATE, ok BOOLEAN, x DOUBLE PRECISION)");
      try (PreparedStatement insert = connection.prepareStatement("INSERT INTO j2 VALUES (?, ?, ?, ?, ?, ?)")) {
        for (int id = 1; id <= 3; id++) {
          insert.setInt(1, id);
          insert.setString(2, id == 2 ? null : "n" + id);
          insert.setBigDecimal(3, new BigDecimal("12.34"));
          insert.setDate(4, Date.valueOf("2026-11-22"));
          insert.setBoolean(5, id % 2 == 0);
          insert.setDouble(6, id / 2.0);
          assertEquals(1, insert.executeUpdate());
        }
      }
      try (PreparedStatement query = connection.prepareStatement("SELECT name, price FROM j2 WHERE id > ? AND x < ? ORDER BY id")) {
        query.setInt(1, 1);
        query.setDouble(2, 10);
        try (ResultSet rows = query.executeQuery()) {
          assertTrue(rows.next());
          assertNull(rows.getString(1));
          assertEquals(new BigDecimal("12.34"), rows.getBigDecimal(2));
          assertTrue(rows.next());
          assertEquals("n3", rows.getString(1));
        }
        // The same statement again, with other values.
        query.setInt(1, 2);
        try (ResultSet rows = query.executeQuery()) {
          assertEquals(List.of("n3"), column(rows, "name"));
        }
      }
    }
  }

  @Test
  void transactionsInSql() throws SQLException {
    try (Connection one = connect(); Connection two = connect(); Statement work = one.createStatement(); Statement other = two.createStatement()) {
      work.executeUpdate("CREATE TABLE j3 (id INT PRIMARY KEY)");
      work.execute("BEGIN");
      work.executeUpdate("INSERT INTO j3 VALUES (1)");
      try (ResultSet rows = other.executeQuery("SELECT count(*) AS n FROM j3")) {
        assertEquals(List.of("0"), column(rows, "n"));
      }
      work.execute("ROLLBACK");
      work.execute("BEGIN");
      work.executeUpdate("INSERT INTO j3 VALUES (2)");
      work.execute("COMMIT");
      try (ResultSet rows = other.executeQuery("SELECT id FROM j3")) {
        assertEquals(List.of("2"), column(rows, "id"));
      }
    }
  }

  @Test
  void metadata() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.executeUpdate("CREATE TABLE j4_parent (a INT, b TEXT, PRIMARY KEY (a, b))");
      statement.executeUpdate(
          "CREATE TABLE j4 (id BIGINT PRIMARY KEY, a INT NOT NULL, b TEXT, price NUMERIC(18,2), FOREIGN KEY (a, b) REFERENCES j4_parent (a, b))");
      statement.executeUpdate("COMMENT ON COLUMN j4.price IS 'a remark'");
      DatabaseMetaData about = connection.getMetaData();
      assertEquals("LatticeDB", about.getDatabaseProductName());
      assertEquals("\"", about.getIdentifierQuoteString());
      assertTrue(about.supportsTransactions());
      assertTrue(about.supportsFullOuterJoins());
      assertTrue(about.supportsUnionAll());
      assertTrue(about.supportsGroupBy());
      assertTrue(about.getSQLKeywords().contains("RETURNING"));
      assertTrue(about.getNumericFunctions().contains("abs"));
      assertEquals(0, about.getMaxTableNameLength());
      assertEquals(Connection.TRANSACTION_REPEATABLE_READ, isolation(about.getDefaultTransactionIsolation()));
      assertTrue(about.supportsResultSetType(ResultSet.TYPE_FORWARD_ONLY));
      assertTrue(about.supportsConvert(Types.INTEGER, Types.VARCHAR));
      try (ResultSet rows = about.getCatalogs()) {
        assertEquals(List.of("lattice"), column(rows, "TABLE_CAT"));
      }
      try (ResultSet rows = about.getSchemas(null, "pub%")) {
        assertEquals(List.of("public"), column(rows, "TABLE_SCHEM"));
      }
      try (ResultSet rows = about.getTableTypes()) {
        assertTrue(column(rows, "TABLE_TYPE").contains("VIEW"));
      }
      try (ResultSet rows = about.getTables(null, "public", "j4%", new String[] {"TABLE"})) {
        assertEquals(List.of("j4", "j4_parent"), column(rows, "TABLE_NAME"));
      }
      try (ResultSet rows = about.getColumns(null, "public", "j4", null)) {
        List<String> seen = new ArrayList<>();
        while (rows.next()) {
          seen.add(rows.getString("COLUMN_NAME") + ":" + rows.getString("TYPE_NAME") + ":" + rows.getString("IS_NULLABLE") + ":" + rows.getInt("ORDINAL_POSITION"));
        }
        assertEquals(List.of("id:bigint:NO:1", "a:integer:NO:2", "b:text:YES:3", "price:numeric(18,2):YES:4"), seen);
      }
      try (ResultSet rows = about.getColumns(null, "public", "j4", "price")) {
        assertTrue(rows.next());
        assertEquals(18, rows.getInt("COLUMN_SIZE"));
        assertEquals(2, rows.getInt("DECIMAL_DIGITS"));
        assertEquals("a remark", rows.getString("REMARKS"));
      }
      try (ResultSet rows = about.getPrimaryKeys(null, "public", "j4_parent")) {
        assertEquals(List.of("a", "b"), column(rows, "COLUMN_NAME"));
      }
      try (ResultSet rows = about.getImportedKeys(null, "public", "j4")) {
        assertEquals(List.of("a", "b"), column(rows, "FKCOLUMN_NAME"));
      }
      try (ResultSet rows = about.getExportedKeys(null, "public", "j4_parent")) {
        assertEquals(List.of("j4", "j4"), column(rows, "FKTABLE_NAME"));
      }
      try (ResultSet rows = about.getCrossReference(null, "public", "j4_parent", null, "public", "j4")) {
        assertEquals(List.of("1", "2"), column(rows, "KEY_SEQ"));
      }
    }
  }

  /** The driver reports the protocol's number of the level, which is not JDBC's. */
  private static int isolation(int protocol) {
    return switch (protocol) {
      case 1 -> Connection.TRANSACTION_READ_UNCOMMITTED;
      case 2 -> Connection.TRANSACTION_READ_COMMITTED;
      case 3 -> Connection.TRANSACTION_REPEATABLE_READ;
      case 4 -> Connection.TRANSACTION_SERIALIZABLE;
      default -> Connection.TRANSACTION_NONE;
    };
  }

  @Test
  void urlProperties() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.executeUpdate("CREATE SCHEMA j5");
      statement.executeUpdate("CREATE TABLE j5.here (x INT)");
    }
    try (Connection connection = DriverManager.getConnection(URL + "&schema=j5"); Statement statement = connection.createStatement();
        ResultSet rows = statement.executeQuery("SELECT count(*) AS n FROM here")) {
      assertEquals(List.of("0"), column(rows, "n"));
    }
    // With `catalog` this version of the driver closes its channel before it closes the session, and complains.
    Connection named = DriverManager.getConnection(URL + "&catalog=lattice");
    try (Statement statement = named.createStatement(); ResultSet rows = statement.executeQuery("SELECT 1 AS one")) {
      assertEquals(List.of("1"), column(rows, "one"));
    }
    try {
      named.close();
    } catch (SQLException complaint) {
      assertTrue(chain(complaint).contains("Channel shutdown"), chain(complaint));
    }
    assertThrows(SQLException.class, () -> DriverManager.getConnection(URL + "&catalog=elsewhere").close());
    assertThrows(SQLException.class, () -> DriverManager.getConnection(URL.replace("p:q", "wrong")).close());
  }

  @Test
  void errors() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      SQLException error = assertThrows(SQLException.class, () -> statement.executeQuery("SELECT * FROM nowhere"));
      assertTrue(chain(error).contains("42P01: table \"nowhere\" does not exist"), chain(error));
      try (ResultSet rows = statement.executeQuery("SELECT 1 AS one")) {
        assertEquals(List.of("1"), column(rows, "one"));
      }
    }
  }

  private static String chain(Throwable error) {
    StringBuilder text = new StringBuilder();
    for (Throwable next = error; next != null; next = next.getCause()) {
      text.append(next.getMessage()).append('\n');
    }
    return text.toString();
  }

  @Test
  void largeResultsAndCancelling() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      try (ResultSet rows = statement.executeQuery("SELECT x FROM generate_series(1, 300000) AS g (x)")) {
        long sum = 0;
        while (rows.next()) {
          sum += rows.getLong(1);
        }
        assertEquals(300000L * 300001 / 2, sum);
      }
      try (ResultSet rows = statement.executeQuery("SELECT x FROM generate_series(1, 1000000000) AS g (x)")) {
        assertTrue(rows.next());
        statement.cancel();
      }
    }
  }
}
