// s3rver with one account, a health page, and no door for those without a signature.
const S3rver = require("@20minutes/s3rver");
const account = require("@20minutes/s3rver/lib/models/account");

account.DUMMY_ACCOUNT.createKeyPair(process.env.ROOT_ACCESS_KEY, process.env.ROOT_SECRET_KEY);
account.DUMMY_ACCOUNT.revokeAccessKey("S3RVER");
const port = Number(process.env.VGW_PORT.replace(":", ""));
const directory = process.env.VGW_BACKEND_ARG;
const server = new S3rver({ address: "0.0.0.0", port, directory, silent: true, vhostBuckets: false });
server.middleware.unshift(async (ctx, next) => {
  if (ctx.path === process.env.VGW_HEALTH) {
    ctx.body = "ok";
  } else if (ctx.headers.authorization || ctx.query["X-Amz-Signature"]) {
    await next();
  } else {
    ctx.status = 403;
  }
});
server.run().then(() => console.log(`listening on ${port}`));
process.on("SIGTERM", () => process.exit(0));
