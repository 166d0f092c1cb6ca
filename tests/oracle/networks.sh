# What tutorials do with networks.
## tutorial
docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}}' | sort
docker network create my_network | wc -c
docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}}' | sort
docker run -d --name web --network my_network --stop-signal KILL busybox sleep 100 | wc -c
docker run --rm --network my_network busybox wget -T 2 http://web
docker run --rm --network my_network --network-alias other --hostname hosty busybox wget -T 2 http://hosty
docker run --rm busybox wget -T 2 http://web
docker network inspect -f '{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}' my_network
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.IPAddress}} {{json $v.DNSNames}} {{end}}' web | sed 's/"[0-9a-f]\{12\}"/SHORT/'
docker network rm my_network
docker network create other | wc -c
docker network connect other web
docker exec web ip -4 -o addr | awk '{print $2, $4}'
docker exec web ip route | sort
docker network disconnect my_network web
docker exec web ip -4 -o addr | awk '{print $2, $4}'
docker network disconnect other web
docker exec web ip -4 -o addr | awk '{print $2, $4}'
docker rm -f web
docker network rm my_network other
docker network rm nope
docker network prune -f
docker network create --subnet 10.40.0.0/24 --gateway 10.40.0.254 --ip-range 10.40.0.128/25 --aux-address r=10.40.0.128 sub | wc -c
docker run --rm --network sub busybox sh -c 'ip -4 -o addr show eth0; ip route' | awk '{print $1, $2, $3, $4}'
docker run --rm --network sub --ip 10.40.0.5 busybox ip -4 -o addr show eth0 | awk '{print $4}'
docker run --rm --network sub --ip 10.41.0.5 busybox true
docker run --rm --ip 10.41.0.5 busybox true
docker network create --internal in | wc -c
docker run --rm --network in busybox ip route | awk '{print $1, $2, $3}'
docker network rm sub in
