// Loads a SavedModel and answers one request as TensorFlow Serving does.
//
//   serving_loader MODEL SIGNATURE THREADS REPEATS < REQUEST > REPLY
//
// MODEL is the folder of one version. REQUEST is a serialized TensorProto, the
// signature's only input; REPLY is a serialized NamedTensorProto for each
// output, each after its length as four bytes in the machine's order. THREADS
// is the size of TensorFlow's inter-op pool, 0 for its default. The request is
// answered REPEATS times, and the median in milliseconds goes to stderr.
//
// The model server's own binary is on no package index. This is its load path,
// on the library of TensorFlow's wheel: XLA is disabled first, as the server
// does unless an experimental flag is given.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/protobuf/named_tensor.pb.h"

namespace tensorflow {
void DisableXlaCompilation();
}

namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << std::endl;
  std::exit(1);
}

double Milliseconds() {
  using std::chrono::duration;
  using std::chrono::steady_clock;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  tensorflow::DisableXlaCompilation();

  tensorflow::SessionOptions options;
  options.config.set_inter_op_parallelism_threads(std::stoi(argv[3]));
  tensorflow::SavedModelBundleLite model;
  Check(tensorflow::LoadSavedModel(options, {}, argv[1], {"serve"}, &model));
  const auto& signature = model.GetSignatures().at(argv[2]);

  tensorflow::TensorProto request;
  request.ParseFromString(
      std::string(std::istreambuf_iterator<char>(std::cin), {}));
  tensorflow::Tensor input;
  if (!input.FromProto(request)) return 2;

  std::vector<std::string> keys, names;
  for (const auto& [key, info] : signature.outputs()) {
    keys.push_back(key);
    names.push_back(info.name());
  }
  std::vector<tensorflow::Tensor> outputs;
  std::vector<double> times;
  for (int i = 0; i < std::stoi(argv[4]); ++i) {
    const double start = Milliseconds();
    Check(model.GetSession()->Run(
        {{signature.inputs().begin()->second.name(), input}}, names, {},
        &outputs));
    times.push_back(Milliseconds() - start);
  }
  std::sort(times.begin(), times.end());
  std::cerr << "median " << times[times.size() / 2] << " ms" << std::endl;

  for (size_t i = 0; i < outputs.size(); ++i) {
    tensorflow::NamedTensorProto reply;
    reply.set_name(keys[i]);
    outputs[i].AsProtoField(reply.mutable_tensor());
    const std::string bytes = reply.SerializeAsString();
    const uint32_t length = bytes.size();
    std::cout.write(reinterpret_cast<const char*>(&length), sizeof length);
    std::cout.write(bytes.data(), bytes.size());
  }
}
