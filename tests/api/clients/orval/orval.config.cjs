module.exports = {
  kapso: {
    input: "../schema.json",
    output: {
      target: "./client.ts",
      client: "fetch",
      headers: true,
      override: { mutator: { path: "./fetch.ts", name: "fetchFromSite", extension: ".js" } },
    },
  },
};
